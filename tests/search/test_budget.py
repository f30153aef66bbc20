"""Budgets: sizes are predicted, limits are proved on the saved model, and what cannot be met says what binds."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from tiny_recipe import RECIPE, TINY
from transformers import (
    AutoModelForImageClassification,
    TrainerControl,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_compress import fit_budget
from hf_compress.cli import main
from hf_compress.errors import ConfigError, OutputExistsError, UnsupportedError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.progress import StepClock
from hf_compress.search import budget, fitting
from hf_compress.search.budget_report import Outlook, costs, plot_outlooks
from hf_compress.search.candidate import KEEPS, Candidate, Cutter
from hf_compress.search.config import BudgetConfig
from hf_compress.search.fitting import Fitting
from hf_compress.search.measured import drop
from hf_compress.search.table import Table, corners

TASK = RECIPE["task"]
QUICK = {"minutes": 0.05, "samples": 32, "finalists": 2, "forms": ["float32"], "train_batch_size": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny.torch.manual_seed(0)
    config = ViTConfig(**{**TINY, "num_hidden_layers": 3, "intermediate_size": 64}, num_labels=10)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # As if there were the time.
        patch.setattr(Fitting, "_plan", lambda _: [0.1, 0.1])
        return folder, fit_budget(whole, TASK, folder, max_params=0.6, **QUICK)


def test_the_saved_model_keeps_to_the_budget_and_loads_plainly(whole, fitted):
    folder, result = fitted
    before, after = (AutoModelForImageClassification.from_pretrained(p) for p in (whole, result.folder))
    count = after.num_parameters()
    assert result.missed == ()
    assert result.found["parameters"] == count <= 0.6 * before.num_parameters()
    assert result.limits["max_params"] == pytest.approx(0.6 * before.num_parameters())
    assert 0 <= result.found["accuracy"] <= 1
    for name in ("budget.md", "budget.png", "comparison.html", "records/fitted.json"):
        assert (folder / name).is_file()
    assert "fit_budget" in (result.folder / "README.md").read_text()
    assert json.loads((folder / "records" / "fitted.json").read_text())["dataset"]["split"] == "test"


def test_parameters_of_every_candidate_are_predicted(fitted):
    """Linear in layers and units, but for widths that are rounded."""
    folder, result = fitted
    rows = [
        line for line in (folder / "budget.md").read_text().splitlines() if line.startswith(f"| {result.candidate} |")
    ]
    predicted = float(rows[-1].split("|")[4].split("/")[0].replace(",", ""))
    assert predicted == pytest.approx(result.found["parameters"], rel=0.03)


def test_a_finished_search_is_read_and_another_is_refused(whole, fitted):
    folder, result = fitted
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    assert fit_budget(whole, TASK, folder, max_params=0.6, **QUICK) == result
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")} == before
    with pytest.raises(OutputExistsError, match="other settings"):
        fit_budget(whole, TASK, folder, max_params=0.5, **QUICK)


def test_what_cannot_be_met_says_what_came_closest_and_what_binds(whole, tmp_path):
    with pytest.raises(UnsupportedError, match=r"closest comes float32, 15 % of the units, 2 layers: max_params"):
        fit_budget(whole, TASK, tmp_path / "out", max_params=0.01, max_bytes=0.9, **QUICK)


@pytest.mark.parametrize(
    ("found", "dense", "expected"),
    [({"bytes": 1, "accuracy": 0.5}, {"accuracy": 0.75}, 0.25), ({"perplexity": 5.0}, {"perplexity": 4.0}, 1.0)],
)
def test_a_drop_is_how_much_worse_the_first_metric_is(found, dense, expected):
    assert drop(found, dense) == expected


def test_the_command_line_fits_and_prints_what_was_found(whole, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text(json.dumps(TASK))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items() if name != "forms"]
    limits = ["--max-params", "0.9", "--forms", "float32", "--output-dir", str(tmp_path / "out")]
    status = main(["fit", str(whole), str(tmp_path / "task.yaml"), *limits, *options])
    assert status == 0
    assert "parameters: " in capsys.readouterr().out


def test_corners_determine_what_is_linear_in_layers_and_units():
    every = [
        Candidate(form, keep, layers, own)
        for form, keep, layers, own in itertools.product(("a", "b"), KEEPS, (None, 4, 3), (False, True))
    ]

    def true(c):
        layers = c.layers or 6
        return {
            "bytes": 1e6 + layers * (2e5 + c.keep * 3e5) - 4e5 * c.has_own_vocabulary,
            "latency": 2 + layers * c.keep,
        }

    chosen = [c for form in "ab" for c in corners(form, every)]
    assert len(chosen) == 12
    table = Table({c: {k: v * (1 + (c.form == "b")) for k, v in true(c).items()} for c in chosen}, 6)
    for candidate in every:
        for what, value in true(candidate).items():
            assert table.predict(candidate, what) == pytest.approx(value * (1 + (candidate.form == "b")))


def test_the_picture_has_every_candidate_the_limit_and_the_choice():
    candidates = [Candidate(form, keep) for form in ("a", "b") for keep in KEEPS]
    outlooks = [Outlook(c, 1 - c.keep, {"bytes": 1e6 * c.keep}, None, c.keep < 0.5, None) for c in candidates]
    axes = plot_outlooks(outlooks, candidates[-1], {"max_bytes": 5e5})
    drawn = {line.get_label(): len(line.get_xdata()) for line in axes.get_lines()}
    assert sum(n for label, n in drawn.items() if "budget" in label) == len(candidates)
    assert drawn["chosen"] == 1
    assert [list(line.get_xdata()) for line in axes.get_lines()][-1] == [0.5, 0.5]


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("candidate", [Candidate("float32", 0.5), Candidate("float32", 0.25, 2)], ids=str)
def test_the_fast_model_for_sizes_and_times_is_as_large_as_the_one_that_is_made(whole, candidate, layout):
    cutter = Cutter(str(whole), TaskConfig.from_dict(TASK), samples=16, seed=0)
    made, sketched = cutter.cut(candidate, layout), cutter.sketch(candidate, layout)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in sketched.parameters())


def test_without_time_for_another_one_the_best_is_kept_and_says_what_it_misses(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Fitting, "_really_fits", lambda *_: True)
    monkeypatch.setattr(Fitting, "_plan", lambda _: [0.1, 0.1])
    for module in (fitting, budget):
        monkeypatch.setattr(module, "missed", lambda *_: ["max_params"])
    result = fit_budget(whole, TASK, tmp_path / "out", max_params=0.9, **{**QUICK, "minutes": 0.001})
    assert result.missed == ("max_params",)
    assert [result.folder] == list((tmp_path / "out" / "candidates").iterdir())


@pytest.mark.parametrize(
    ("left", "expected"), [(10, [0.0]), (160, [28.0]), (240, [30.0, 30.0]), (1590, [200.0, 200.0, 200.0])]
)
def test_finalists_are_as_many_as_there_is_time_for(monkeypatch, tmp_path, left, expected):
    monkeypatch.setattr(Fitting, "seconds_left", left)
    assert Fitting(tmp_path, None, BudgetConfig(max_params=0.5), {})._plan() == expected


def test_where_time_is_short_one_candidate_is_made_and_none_compared(whole, tmp_path):
    fit_budget(whole, TASK, tmp_path / "out", max_params=0.6, **QUICK)
    assert not list((tmp_path / "out" / "state").glob("tried-*"))


@pytest.mark.parametrize(("limit", "steps"), [(0.0, 5), (100.0, 8)])
def test_steps_are_timed_without_the_first_until_that_took_long_enough(monkeypatch, limit, steps):
    # The first four take a second each, the others three.
    ends = iter([1.0, 2.0, 3.0, 4.0, 7.0, 10.0, 13.0, 16.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(ends))
    clock, control, done = StepClock(4, limit), TrainerControl(), 0
    while done < 8 and not control.should_training_stop:
        clock.on_step_end(None, None, control)
        done += 1
    assert (done, clock.seconds) == (steps, 3.0)


def test_the_report_says_what_each_step_cost(fitted):
    folder, _ = fitted
    marks = {p.stem: json.loads(p.read_text())["seconds"] for p in (folder / "state").glob("*.json")}
    rows = {text: (int(steps), int(seconds)) for text, steps, seconds in costs(folder)}
    tried = [seconds for name, seconds in marks.items() if name.startswith("tried-")]
    assert rows["cutting and training the best few briefly"] == (len(tried), round(sum(tried)))
    assert sum(steps for steps, _ in rows.values()) == sum(not name.startswith(("steps-", "plan")) for name in marks)
    assert len(tried) == 2
    assert "cutting and training the chosen one" in (folder / "budget.md").read_text()


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[3]]
from search.test_budget import QUICK, TASK
from hf_compress import fit_budget
print(fit_budget(sys.argv[1], TASK, sys.argv[2], max_params=0.6, **QUICK).candidate)
"""


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(whole, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(whole), str(tmp_path / "out"), str(Path(__file__).parents[1])]
    for kill in range(3):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(8 + 4 * kill)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = {p: p.read_bytes() for p in (tmp_path / "out" / "state").glob("*.json")}
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "float32" in finished.stdout
    assert all(p.read_bytes() == content for p, content in done.items())


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        (TASK, {}, ConfigError, "nothing is asked for"),
        (TASK, {"max_bytes": -1.0}, ConfigError, "max_bytes must be above 0"),
        (TASK, {"max_bytes": 0.5, "forms": ["gguf"]}, ConfigError, "gguf"),
        (TASK, {"max_byte": 0.5}, ConfigError, "did you mean 'max_bytes'"),
        (TASK, {"max_bytes": 0.5, "finalists": 0}, ConfigError, "finalists must be at least 1"),
        ({"type": "image-classification"}, {"max_bytes": 0.5}, ConfigError, "dataset or files"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(whole, tmp_path, task, options, error, message):
    with pytest.raises(error, match=message):
        fit_budget(whole, task, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
