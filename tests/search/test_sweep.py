"""Sweeps: what is tried, how it is scored, and that nothing changes when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")
from tiny_recipe import RECIPE, SPACE, SPARSITY, TEMPERATURE

from hf_compress import sweep
from hf_compress.errors import ConfigError, OutputExistsError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_splits
from hf_compress.recipes.folds import fold_of_rows, fold_of_texts
from hf_compress.search.config import SweepConfig
from hf_compress.search.report import plot_sweep, table
from hf_compress.search.study import Trial, Trials, best_trials


def trials_of(folder):
    return [{**json.loads(p.read_text()), "seconds": 0} for p in sorted((folder / "trials").glob("*.json"))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(RECIPE, SPACE, folder, trials=3, folds=2, seeds=(0, 1), finish=False)


def test_every_fold_and_seed_is_scored_and_the_best_mean_wins(swept):
    folder, result = swept
    assert [t.state for t in result.trials] == ["complete"] * 3
    assert all(len(t.scores) == 4 for t in result.trials)
    means = {t.number: sum(s["accuracy"] for s in t.scores) / 4 for t in result.trials}
    assert result.best[0].number == max(means, key=lambda n: (means[n], -n))
    assert all(1 <= t.params[TEMPERATURE] <= 8 and t.params[SPARSITY] in SPACE[SPARSITY] for t in result.trials)
    # One teacher for each fold and seed, and no student is kept.
    assert [p.name.split("-")[0] for p in sorted((folder / "stages").glob("*-*")) if p.is_dir()] == ["teacher"] * 4
    assert "best" in (folder / "sweep.md").read_text()
    assert (folder / "sweep.png").stat().st_size > 5000
    assert table(result).count("\n") == 4


def test_a_finished_sweep_is_read_and_more_trials_may_be_added(swept):
    folder, result = swept
    before = trials_of(folder)
    again = sweep(RECIPE, SPACE, folder, trials=3, folds=2, seeds=(0, 1), finish=False)
    assert again.trials == result.trials
    with pytest.raises(OutputExistsError, match="other settings"):
        sweep(RECIPE, SPACE, folder, trials=3, folds=3, finish=False)
    assert trials_of(folder) == before


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[2]]
from tiny_recipe import RECIPE, SPACE
from hf_compress import sweep
sweep(RECIPE, SPACE, sys.argv[1], trials=3, folds=2, seeds=(0, 1), finish=False)
"""


@pytest.mark.slow
def test_a_sweep_killed_five_times_ends_with_the_same_study(swept, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(Path(__file__).parents[1])]
    for kill in range(5):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(6 + 2.5 * kill)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert trials_of(tmp_path / "killed") == trials_of(swept[0])


@pytest.mark.slow
def test_two_processes_share_the_trials(swept, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "shared"), str(Path(__file__).parents[1])]
    workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0]
    found = trials_of(tmp_path / "shared")
    assert [(t["number"], t["state"], len(t["scores"])) for t in found] == [(n, "complete", 4) for n in range(3)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_is_tried_depends_on_number_and_history_alone(tmp_path, sampler):
    """Eight trials in one go, and with a new object for each, as after eight kills."""

    def run(folder, is_restarted):
        config = SweepConfig(SPACE, trials=8, sampler=sampler, objectives={"score": "maximize"}, prune=False)
        trials = Trials(folder, config)
        for _ in range(8 if is_restarted else 1):
            for trial in (Trials(folder, config) if is_restarted else trials).open():
                score = -abs(trial.params[TEMPERATURE] - 3) - trial.params[SPARSITY]
                trials.save(Trial(trial.number, trial.params, ({"score": score},), "complete"))
                if is_restarted:
                    break
        return [t.params for t in trials.read()]

    one = run(tmp_path / "one", False)
    assert one == run(tmp_path / "many", True)
    assert len({str(p) for p in one}) > 4


def test_a_grid_tries_every_combination_once(tmp_path):
    space = {SPARSITY: {"low": 0.1, "high": 0.3, "step": 0.1}, TEMPERATURE: [1, 2]}
    trials = Trials(tmp_path, SweepConfig(space, trials=99, sampler="grid"))
    for trial in trials.open():
        trials.save(Trial(trial.number, trial.params, ({"score": 1.0},), "complete"))
    found = [(round(t.params[SPARSITY], 9), t.params[TEMPERATURE]) for t in trials.read()]
    assert found == [(a, b) for a in (0.1, 0.2, 0.3) for b in (1, 2)]


def test_a_trial_below_the_median_of_the_others_is_hopeless(tmp_path):
    trials = Trials(tmp_path, SweepConfig(SPACE, objectives={"score": "maximize"}))
    params = {TEMPERATURE: 2.0, SPARSITY: 0.5}
    for number in range(6):
        trials.save(Trial(number, params, ({"score": number / 10},) * 2, "complete"))
    verdict = [trials.is_hopeless(Trial(6, params, ({"score": s},))) for s in (0.2, 0.3)]
    assert verdict == [True, False]


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [({"a": "maximize"}, [2]), ({"a": "minimize"}, [0]), ({"a": "maximize", "b": "minimize"}, [0, 2])],
)
def test_the_best_are_those_that_no_other_beats(objectives, expected):
    points = [(1, 1), (1, 2), (3, 3), (2, 4)]
    trials = [Trial(i, {}, ({"a": a, "b": b},), "complete") for i, (a, b) in enumerate(points)]
    trials.append(Trial(9, {}, ({"a": 99, "b": 0},), "pruned"))
    assert [t.number for t in best_trials(trials, objectives)] == expected


def test_two_objectives_give_a_front_and_a_cost_is_that_of_the_file(tmp_path):
    space = {
        "stages.student.config": [RECIPE["stages"][1]["config"], {**RECIPE["stages"][1]["config"], "hidden_size": 32}]
    }
    objectives = {"accuracy": "maximize", "parameters": "minimize"}
    result = sweep(RECIPE, space, tmp_path, trials=2, folds=2, objectives=objectives, sampler="grid", prune=False)
    small, large = (t.mean("parameters") for t in result.trials)
    assert small < large / 2
    assert result.trials[0] in result.best
    assert result.chosen is None
    labels = [line.get_label() for line in plot_sweep(result).get_lines()]
    assert labels == ["trials", "no other is better in both"]


def test_a_setting_that_cannot_be_run_fails_alone(tmp_path):
    space = {"stages.student.teacher": ["teacher", "./nowhere"]}
    result = sweep(RECIPE, space, tmp_path, trials=2, folds=2, sampler="grid", finish=False)
    assert [t.state for t in result.trials] == ["complete", "failed"]
    assert "nowhere" in result.trials[1].reason
    assert "trial 1 failed" in (tmp_path / "sweep.md").read_text()


def test_the_chosen_setting_is_trained_on_all_and_tested_once(tmp_path):
    result = sweep(RECIPE, {SPARSITY: [0.25, 0.5]}, tmp_path, trials=1, folds=2)
    record = json.loads((result.chosen / "records" / "student.json").read_text())
    assert record["dataset"]["split"] == "test"
    assert record["method"]["student"]["compression"]["pruning"]["sparsity"] == result.best[0].params[SPARSITY]
    assert f"--set {SPARSITY}=" in record["command"]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "space is empty"),
        ({"task.max_samples": [1]}, {}, "option of a stage"),
        ({"stages.pupil.compression.pruning.sparsity": [0.5]}, {}, "no stage 'pupil'"),
        ({"stages.student.compression.pruning.sparcity": [0.5]}, {}, "did you mean 'sparsity'"),
        ({SPARSITY: [0.5, 1.5]}, {}, "cannot be 1.5"),
        ({SPARSITY: {"low": 0.5, "high": 0.1}}, {}, "low below high"),
        ({TEMPERATURE: {"low": 0, "high": 1, "log": True}}, {}, "low above 0"),
        ({SPARSITY: 0.5}, {}, "list of choices"),
        ({SPARSITY: [0.5]}, {"folds": 0}, "folds must be at least 1"),
        ({SPARSITY: [0.5]}, {"sampler": "tps"}, "sampler must be one of"),
        ({SPARSITY: {"low": 0.1, "high": 0.5}}, {"sampler": "grid"}, "low, high and step"),
        ({SPARSITY: [0.5]}, {"objectives": {"accuracy": "up"}}, "maximize, minimize"),
        ({SPARSITY: [0.5]}, {"trails": 3}, "did you mean 'trials'"),
    ],
)
def test_a_bad_search_is_refused_before_anything_is_written(tmp_path, space, options, message):
    with pytest.raises(ConfigError, match=message):
        sweep(RECIPE, space, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_objective_says_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="no 'f1'; there are accuracy"):
        sweep(RECIPE, {SPARSITY: [0.5]}, tmp_path, trials=1, folds=2, objectives={"f1": "maximize"})


def digits(**options):
    return load_splits(TaskConfig("image-classification", dataset="digits", **options), ("image",), "label").rows


def test_folds_cover_the_training_data_once_evenly_by_class_and_never_touch_the_test_split():
    def images(rows):
        return [(image.tobytes(), label) for image, label in zip(rows["image"], rows["label"], strict=True)]

    whole = digits()
    pool = images(whole["train"]) + images(whole["validation"])
    seen = []
    for which in range(3):
        rows = digits(fold=(which, 3))
        held_out = images(rows["validation"])
        assert held_out == images(rows["test"])
        assert sorted(held_out + images(rows["train"])) == sorted(pool)
        counts = [[label for _, label in held_out].count(c) for c in range(10)]
        expected = [[label for _, label in pool].count(c) / 3 for c in range(10)]
        assert all(abs(a - b) <= 1 for a, b in zip(counts, expected, strict=True))
        seen += held_out
    assert sorted(seen) == sorted(pool)


def test_folds_of_running_text_are_whole_runs():
    texts = {"train": list("abcdef"), "validation": ["g"], "test": ["x"]}
    parts = [fold_of_texts(texts, (i, 3)) for i in range(3)]
    assert [p["test"] for p in parts] == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert parts[1]["train"] == ["a", "b", "e", "f", "g"]


def test_rows_without_classes_are_folded_too():
    from datasets import Dataset

    rows = Dataset.from_dict({"text": list("abcdefg"), "label": [0.5] * 7})
    parts = [fold_of_rows({"train": rows, "test": rows}, (i, 3), "label") for i in range(3)]
    assert sorted(t for p in parts for t in p["test"]["text"]) == list("abcdefg")
