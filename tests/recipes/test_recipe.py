import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import language
import pytest
import tiny_recipe
import tiny_tasks
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_compress import run_recipe
from hf_compress.errors import ConfigError, DataError, OutputExistsError, RecipeError
from hf_compress.measurement.record import load_records
from hf_compress.recipes.load import builtin_recipes, load_recipe
from hf_compress.recipes.recipe import command_of
from hf_compress.recipes.stages import STAGES, check_stages

# The built-in recipe with a smaller teacher and few steps.
SHORT = [
    "stages.teacher.config.num_hidden_layers=3",
    "stages.teacher.config.hidden_size=64",
    "stages.teacher.config.intermediate_size=128",
    "stages.teacher.arguments.max_steps=40",
    "stages.teacher.arguments.save_steps=4",
    "stages.compressed.arguments.max_steps=40",
    "stages.compressed.arguments.save_steps=4",
    "task.max_samples=128",
]


def test_the_command_of_a_run_names_no_folder_of_this_machine(tmp_path):
    given = [f"task.files.train={tmp_path}/train.parquet", "stages.teacher.source=org/model", "seed=1"]
    shown = command_of(tmp_path / "mine.yaml", load_recipe("digits"), given)
    told = "--set task.files.train=train.parquet --set stages.teacher.source=org/model --set seed=1"
    assert shown == f"hf-compress run mine.yaml {told}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_recipe("digits", tmp_path_factory.mktemp("digits") / "run", overrides=SHORT)


def test_a_run_writes_models_records_pictures_and_cards(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"teacher", "student", "compressed", "shrunk", "quantized", "records", "README.md"} <= names
    assert {"comparison.md", "quality_size.png", "quality_latency.png"} <= names
    records = {r.model: r for r in load_records(finished / "records")}
    assert [r.role for r in records.values()] == ["baseline", "intermediate", "result"]
    assert all(r.get("accuracy").value > 0 for r in records.values())
    assert {r.dataset["samples"] for r in records.values()} == {128}
    card = (finished / "quantized" / "README.md").read_text()
    assert card == (finished / "README.md").read_text()
    shown = records["quantized"].get("accuracy").value
    assert f"{100 * shown:.2f} %" in card


def test_the_shrunk_model_is_plain_and_has_half_the_neurons(finished):
    model, info = AutoModelForImageClassification.from_pretrained(finished / "shrunk", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (model.config.intermediate_size, model.config.num_hidden_layers) == (64, 2)
    assert (finished / "shrunk" / "preprocessor_config.json").is_file()


def test_a_rerun_does_nothing_but_show_the_table_and_changed_options_are_refused(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    run_recipe("digits", finished, overrides=SHORT)
    assert "weights on disk" in capsys.readouterr().out
    with pytest.raises(OutputExistsError, match=r"other options \(stages.1.layers\)"):
        run_recipe("digits", finished, overrides=[*SHORT, "stages.student.layers=1"])
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_killed_runs_go_on_at_the_first_incomplete_stage_and_end_the_same(finished, tmp_path):
    """Killed once in the teacher's training, once in the student's, and then left alone."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "hf_compress", "run", "digits", "--output-dir", run]
    command += [part for override in [*SHORT, "measure.models=[teacher,quantized]"] for part in ("--set", override)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for stage in ("teacher", "compressed"):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        checkpoint = run / "work" / stage / "checkpoint-4" / "trainer_state.json"
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (run / stage).exists()
    stamp = (run / "teacher" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "teacher: done before" in done.stderr
    assert (run / "teacher" / "model.safetensors").stat().st_mtime_ns == stamp
    for name in ("teacher", "shrunk", "quantized"):
        one, other = (next((folder / name).glob("*.safetensors")) for folder in (finished, run))
        assert one.read_bytes() == other.read_bytes(), name


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process"):
        run_recipe("digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_pushed_when_asked_without_doing_it_again(finished, tmp_path, monkeypatch):
    from hub.hub_server import HubServer, use_hub

    stamp = (finished / "quantized" / "model.safetensors").stat().st_mtime_ns
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path)
        run_recipe("digits", finished, overrides=[*SHORT, "push_to=tester/digits"])
        sent = server.files("tester/digits")
    assert (finished / "quantized" / "model.safetensors").stat().st_mtime_ns == stamp
    assert sent["model.safetensors"] == (finished / "quantized" / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "preprocessor_config.json", "quality_size.png"} <= set(sent)


@pytest.fixture
def reviews(tmp_path):
    """A text-classification recipe over local files and a tiny BERT with a real tokenizer."""
    import tiny
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *"good fine bad poor film plot actor it was very".split()]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    base = tmp_path / "base"
    tiny.bert(num_hidden_layers=3).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = {
        "sentence": [f"it was {'very ' * (i % 5)}{('good', 'bad', 'fine', 'poor')[i % 4]}" for i in range(80)],
        "label": [(1, 0, 1, 0)[i % 4] for i in range(80)],
    }
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    train = {"max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
    return {
        "name": "reviews",
        "task": {
            "type": "text-classification",
            "files": {s: str(tmp_path / "data.parquet") for s in ("train", "test")},
            "text_columns": ["sentence"],
        },
        "stages": [
            {"name": "teacher", "kind": "train", "source": str(base), "arguments": train},
            {"name": "student", "kind": "shrink", "source": "teacher", "layers": [0, 2], "ffn": 0.5},
            {
                "name": "small",
                "kind": "train",
                "source": "student",
                "teacher": "teacher",
                "arguments": train,
                "compression": {"distillation": {}, "pruning": {"sparsity": 0.5, "frequency": 5}},
            },
        ],
        "measure": {"models": ["teacher", "small"], "batch_sizes": [1], "length": 16},
    }


def test_own_yaml_for_text_classification_on_local_files(reviews, tmp_path, quick_measures):
    path = tmp_path / "reviews.yaml"
    path.write_text(yaml.safe_dump(reviews))
    run = run_recipe(path, tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(run / "small")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 16)
    record = next(r for r in load_records(run / "records") if r.model == "small")
    assert record.get("accuracy").value == 1.0
    assert 0.3 < record.get("sparsity").value < 0.7
    assert "neither smaller nor faster" in " ".join(record.notes)
    assert str(tmp_path) not in (run / "README.md").read_text()


def test_unlabelled_text_reaches_the_distilling_stage_alone(reviews, tmp_path, quick_measures):
    reviews["stages"][-1]["compression"] = {"distillation": {"unlabeled_weight": 5.0}}
    (tmp_path / "more.csv").write_text("sentence\n" + "very bad plot\n" * 20)
    runs = []
    for name in ("with", "without"):
        if name == "with":
            reviews["task"]["files"]["unlabeled"] = str(tmp_path / "more.csv")
        else:
            del reviews["task"]["files"]["unlabeled"]
        folder = run_recipe(reviews, tmp_path / name)
        runs.append([load_file(folder / stage / "model.safetensors") for stage in ("teacher", "small")])
    (teacher, small), (other_teacher, other_small) = runs
    assert all(torch.equal(value, other_teacher[key]) for key, value in teacher.items())
    assert not all(torch.equal(value, other_small[key]) for key, value in small.items())


def test_unlabelled_text_that_no_stage_can_learn_from_is_refused(reviews, tmp_path):
    reviews["task"]["files"]["unlabeled"] = "more.csv"
    del reviews["stages"][-1]
    reviews["measure"]["models"] = ["teacher", "student"]
    with pytest.raises(ConfigError, match="unlabeled rows, and no stage"):
        run_recipe(reviews, tmp_path / "run")


def change(data, key, value):
    data = json.loads(json.dumps(data))
    *parents, last = key
    place = data
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


def test_units_go_without_training_as_a_stage(reviews, tmp_path, quick_measures):
    how = {"keep": {"layers": 2, "ffn": 0.5}, "criterion": "taylor"}
    oneshot = {"kind": "oneshot", "source": "teacher", "oneshot": how, "samples": 48}
    reviews["stages"] = [reviews["stages"][0], {"name": "cut", **oneshot}]
    reviews["measure"]["models"] = ["teacher", "cut"]
    run = run_recipe(reviews, tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(run / "cut")
    full = AutoModelForSequenceClassification.from_pretrained(run / "teacher")
    assert model.config.num_hidden_layers == 2
    assert 2 * model.config.intermediate_size == full.config.intermediate_size
    record = next(r for r in load_records(run / "records") if r.model == "cut")
    assert record.method["cut"]["oneshot"]["samples"] == 48


def test_the_built_in_language_model_is_pruned_and_healed_on_a_text_file(tmp_path, quick_measures):
    (tmp_path / "my.txt").write_text(language.text())
    steps = ["max_steps=30", "learning_rate=0.005"]
    overrides = [
        f"task.files.train={tmp_path / 'my.txt'}",
        "task.max_length=16",
        f"stages.dense.source={language.save_model(tmp_path / 'model')}",
        *(f"stages.{name}.arguments.{each}" for name in ("dense", "healed") for each in steps),
        "stages.pruned.oneshot.sparsity=0.6",
    ]
    run = run_recipe("language-model", tmp_path / "run", overrides=overrides)
    found = {r.model: r for r in load_records(run / "records")}
    quality = {name: r.get("perplexity").value for name, r in found.items()}
    assert quality["dense"] < quality["pruned"]
    assert quality["healed"] < quality["pruned"]
    healed, pruned = (AutoModelForCausalLM.from_pretrained(run / name) for name in ("healed", "pruned"))
    for name, weight in pruned.named_parameters():
        if "proj" in name:
            assert torch.equal(weight == 0, healed.get_parameter(name) == 0), name
            assert float((weight == 0).double().mean()) == pytest.approx(0.6, abs=0.01)
    assert found["healed"].dataset["context"] == 16
    assert "sparsegpt" in (run / "README.md").read_text()


EXPORT = {"name": "small", "kind": "export", "source": "student"}


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (["stages", 0, "knd"], "x", ConfigError, "unknown option 'knd' .did you mean 'kind'"),
        (["stages", 0, "kind"], "trian", RecipeError, "unknown kind of stage 'trian' .did you mean 'train'"),
        (["stages", 1, "name"], "teacher", ConfigError, "used twice"),
        (["stages", 1, "name"], "../up", ConfigError, "name must be lower-case"),
        (["stages", 0, "source"], "small", RecipeError, "refers to 'small', which comes later"),
        (["stages", 1, "arguments"], {"max_steps": 1}, RecipeError, "shrink does not take arguments"),
        (["stages", 0, "arguments"], {"max_step": 1}, RecipeError, "did you mean 'max_steps'"),
        (["stages", 2, "teacher"], None, RecipeError, "go together"),
        (["stages", 2, "compression", "pruning", "criterion"], "magic", RecipeError, "unknown criterion 'magic'"),
        (["task", "type"], "poetry", ConfigError, "unknown task 'poetry'"),
        (["task", "files"], {"train": "a.xml"}, DataError, "must all end in one of"),
        (["task", "files"], {"train": "gone.csv", "test": "gone.csv"}, DataError, "there is no file gone.csv"),
        (["task", "text_columns"], ["sentense"], DataError, "did you mean 'sentence'"),
        (["task", "label_column"], "lable", DataError, "no column 'lable' .did you mean 'label'"),
        (["task", "splits"], {"test": "tset"}, DataError, "no split 'tset' .did you mean 'test'"),
        (["measure", "models"], ["nobody"], ConfigError, "stages that do not exist: nobody"),
        (["stages", 0, "source"], "nobody/nothing", RecipeError, "stage 'teacher' with source 'nobody/nothing'"),
        (["stages", 1, "name"], "report", ConfigError, "name must be"),
        (["measure", "baseline"], "student", ConfigError, "leaves out student"),
        (["measure", "batch_sizes"], [0], RecipeError, "batch_sizes must be different whole numbers"),
        (["card"], {"base_model": "./base"}, RecipeError, "base_model must be a Hub id"),
        (["stages", 2], {**EXPORT, "export": {"format": "openvin0"}}, RecipeError, "did you mean 'openvino'"),
        (["stages", 2], {**EXPORT, "export": {"quantization": "int8"}}, RecipeError, "none, dynamic, static"),
        (["stages", 0, "arguments"], {"lr_scheduler_type": "consine"}, RecipeError, "arguments: consine"),
        (["stages", 0, "arguments"], {"load_best_model_at_end": True}, RecipeError, "save and eval strategy"),
        (["stages"], [], ConfigError, "stages is empty"),
        (["name"], None, ConfigError, "'name' is missing"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_near_name(reviews, tmp_path, key, value, error, message):
    with pytest.raises(error, match=message):
        run_recipe(change(reviews, key, value), tmp_path / "run")
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".safetensors"]


def test_what_the_report_takes_can_be_put_right_until_it_is_there(tmp_path, quick_measures, monkeypatch):
    from hf_compress.report import compare as module

    def broken(*_):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(module, "compare", broken)
        with pytest.raises(OSError, match="no"):
            run_recipe(tiny_recipe.RECIPE, tmp_path / "run")
    stamp = (tmp_path / "run" / "teacher" / "model.safetensors").stat().st_mtime_ns
    changed = change(tiny_recipe.RECIPE, ["card"], {"license": "mit"})
    run_recipe(changed, tmp_path / "run")
    assert (tmp_path / "run" / "teacher" / "model.safetensors").stat().st_mtime_ns == stamp
    assert "license: mit" in (tmp_path / "run" / "README.md").read_text()
    run_recipe(changed, tmp_path / "run")
    with pytest.raises(OutputExistsError, match="other options .card"):
        run_recipe(tiny_recipe.RECIPE, tmp_path / "run")


def test_an_empty_split_is_refused(reviews, tmp_path):
    (tmp_path / "empty.csv").write_text("sentence,label\n")
    files = {"train": reviews["task"]["files"]["train"].replace("data.parquet", "empty.csv")}
    files["test"] = files["train"]
    with pytest.raises(DataError, match="no data|empty"):
        run_recipe(change(reviews, ["task", "files"], files), tmp_path / "run")


def test_a_folder_with_something_else_is_left_alone(reviews, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match="no run of a recipe"):
        run_recipe(reviews, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key=value"),
        ("stages.teachr.source=x", "no stage 'teachr' .did you mean 'teacher'"),
        ("stages.teacher=x", "names a whole stage"),
        ("seed.deep=1", "holds no options"),
        ("seed=[", "is no YAML"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", [override, "seed=1"] if override != "seed.deep=1" else ["seed=1", override])


def test_an_unknown_recipe_names_the_built_in_ones():
    with pytest.raises(RecipeError, match="did you mean 'digits'.*built in are: digits"):
        load_recipe("digit")


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_are_valid_and_survive_a_round_trip(name):
    recipe = load_recipe(name)
    check_stages(recipe)
    assert type(recipe).from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    assert {s.kind for s in recipe.stages} <= set(STAGES)
    assert Path(name).name == name


def test_layers_of_two_stacks_go_as_a_stage(tmp_path, quick_measures):
    rows = {"source": ["it was", "the film"] * 4, "target": ["good", "bad"] * 4}
    file = tiny_tasks.write(tmp_path / "rows.parquet", rows)
    left = {"num_layers": [0], "num_decoder_layers": [0]}
    stage = {"name": "small", "kind": "shrink", "source": tiny_tasks.save_t5(tmp_path / "t5"), "layers": left}
    task = {"type": "sequence-to-sequence", "files": {"train": file, "test": file}, "max_target_length": 6}
    run = run_recipe({"name": "t5", "task": task, "stages": [stage]}, tmp_path / "run")
    config = json.loads((run / "small" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (1, 1)
    assert "pipeline_tag" not in (run / "README.md").read_text()


def test_a_recipe_of_one_stage_is_measured_alone(tmp_path, quick_measures):
    recipe = {**tiny_recipe.RECIPE, "stages": tiny_recipe.RECIPE["stages"][:1]}
    (record,) = load_records(run_recipe(recipe, tmp_path / "run") / "records")
    assert (record.model, record.role) == ("teacher", "result")
