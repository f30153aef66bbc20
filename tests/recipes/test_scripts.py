"""Every training script on tiny files, from its command line to a folder that stock transformers loads."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tasks
import torch
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
)
from transformers import AutoModelForSequenceClassification as Classifier

from hf_compress import run_recipe
from hf_compress.errors import ConfigError, DataError, OutputExistsError

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--report_to", "none", "--use_cpu"]
STEPS += ["--disable_tqdm", "true", "--save_strategy", "no"]
# Of each script: the packages that it needs, its own options, what is compressed, the Auto class of the result.
FFN = ["--structure", "ffn", "--sparsity", "0.5"]
ALL = {
    "text_classification": ([], ["--text_columns", "text", "text"], FFN, "AutoModelForSequenceClassification"),
    "token_classification": (["seqeval"], [], ["--structure", "2:4"], "AutoModelForTokenClassification"),
    "question_answering": ([], ["--max_length", "32", "--doc_stride", "8"], FFN, "AutoModelForQuestionAnswering"),
    "causal_lm": ([], ["--max_length", "16"], ["--sparsity", "0.5"], "AutoModelForCausalLM"),
    "masked_lm": ([], ["--max_length", "16"], ["--sparsity", "0.5"], "AutoModelForMaskedLM"),
    "seq2seq": ([], ["--max_target_length", "6"], ["--sparsity", "0.5"], "AutoModelForSeq2SeqLM"),
    "image_classification": (["PIL"], [], FFN, "AutoModelForImageClassification"),
    "audio_classification": (["scipy"], [], FFN, "AutoModelForAudioClassification"),
    "sentence_embeddings": (["scipy"], ["--embedding_loss", "mse"], FFN, "AutoModel"),
}


def pictures(count=12):
    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "light"])})
    rows = {"image": [Pillow.new("RGB", (16, 16), (200 * (i % 2),) * 3) for i in range(count)]}
    return {**rows, "label": [i % 2 for i in range(count)]}, features


def prepare(folder, name):
    """Return a saved model and rows for the script called `name`."""
    texts = {"text": tiny_tasks.sentences(), "label": [i % 2 for i in range(24)]}
    berts = {
        "text_classification": (Classifier, texts),
        "token_classification": (AutoModelForTokenClassification, {
            "tokens": [s.split() for s in texts["text"]],
            "ner_tags": [["B-L" if w == "paris" else "O" for w in s.split()] for s in texts["text"]],
        }),
        "question_answering": (AutoModelForQuestionAnswering, tiny_tasks.questions()),
        "masked_lm": (AutoModelForMaskedLM, {"text": tiny_tasks.sentences(80)}),
        "sentence_embeddings": (AutoModel, texts),
    }  # fmt: skip
    if name in berts:
        auto, rows = berts[name]
        return tiny_tasks.save_bert(folder / "base", auto), tiny_tasks.write(folder / "rows.parquet", rows)
    if name == "causal_lm":
        rows = {"text": tiny_tasks.sentences(80)}
        return tiny_tasks.save_llama(folder / "base"), tiny_tasks.write(folder / "rows.parquet", rows)
    if name == "seq2seq":
        rows = {"source": texts["text"], "target": [s.split()[-1] for s in texts["text"]]}
        return tiny_tasks.save_t5(folder / "base"), tiny_tasks.write(folder / "rows.parquet", rows)
    if name == "image_classification":
        return tiny_tasks.save_vit(folder / "base"), tiny_tasks.write(folder / "rows.parquet", *pictures())
    return tiny_tasks.save_ast(folder / "base"), tiny_tasks.write(folder / "rows.parquet", tiny_tasks.tones())


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [f"train_{name}.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / f"train_{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def results():
    return {}


@pytest.mark.parametrize("name", ALL)
def test_a_script_distils_prunes_quantizes_and_reports(tmp_path_factory, monkeypatch, results, name):
    packages, own, what, auto = ALL[name]
    for package in packages:
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp(name)
    base, file = prepare(folder, name)
    learns = ["--embedding_model", base] if name == "sentence_embeddings" else ["--teacher", base]
    files = ["--model", base, "--train_file", file, "--test_file", file, "--output_dir", folder / "out"]
    quantized = ["--quantization", "int8"] if name == "text_classification" else []
    run(monkeypatch, name, *files, *learns, *own, *what, *quantized, *STEPS)
    found = json.loads((folder / "out" / "results.json").read_text())
    assert list(found) == ["start", "model", *(["quantized"] if quantized else [])]
    assert len({tuple(metrics) for metrics in found.values()}) == 1
    results[name] = (auto, str(folder / "out" / "compressed" / "model"))


def test_what_scripts_write_loads_without_this_package_and_is_as_sparse_as_asked(results):
    code = (
        "import sys, json, transformers\n"
        "found = {}\n"
        "for name, (auto, folder) in json.loads(sys.argv[1]).items():\n"
        "    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['unexpected_keys'], (name, info)\n"
        "    weights = {n: [int((p == 0).sum()), p.numel()] for n, p in model.named_parameters() if p.dim() == 2}\n"
        "    found[name] = [getattr(model.config, 'intermediate_size', 0), weights]\n"
        "assert 'hf_compress' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(results) > 3
    for name, (width, zeros) in found.items():
        if ALL[name][2] == FFN:
            assert width == (24 if name == "image_classification" else 16), name
        else:
            # Layers are half empty, not each as much as the others; embeddings and heads are not.
            layers = [(z, size) for n, (z, size) in zeros.items() if z and ("layer" in n or "block" in n)]
            assert sum(z for z, _ in layers) == pytest.approx(0.5 * sum(size for _, size in layers), rel=0.02), name


@pytest.mark.parametrize(
    ("name", "type", "options", "metric"),
    [
        ("seq2seq", "sequence-to-sequence", {"max_target_length": 6}, "exact_match"),
        ("sentence_embeddings", "sentence-embeddings", {}, "spearman"),
    ],
)
def test_a_recipe_trains_a_task_with_its_own_trainer(tmp_path, quick_measures, name, type, options, metric):
    base, file = prepare(tmp_path, name)
    own = {"embedding_model": base} if name == "sentence_embeddings" else {}
    prune = {"pruning": {"sparsity": 0.5, "frequency": 1}}
    steps = {"max_steps": 2, "per_device_train_batch_size": 4}
    recipe = {
        "name": "mine",
        "task": {"type": type, "files": {"train": file, "test": file}, **options, **own},
        "stages": [
            {"name": "dense", "kind": "train", "source": base, "arguments": steps},
            {"name": "small", "kind": "train", "source": "dense", "compression": prune, "arguments": steps},
        ],
    }
    folder = run_recipe(recipe, tmp_path / "run")
    record = json.loads((folder / "records" / "small.json").read_text())
    assert metric in {m["name"] for m in record["measurements"]}
    assert metric in (folder / "README.md").read_text()


def text_run(folder):
    base, file = prepare(folder, "text_classification")
    return ["--model", base, "--train_file", file, "--test_file", file, "--output_dir", folder / "out", *STEPS]


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (["--text_columns", "txet"], DataError, "did you mean 'text'"),
        (["--sparsity", "1.5"], ConfigError, "sparsity must be at least 0 and below 1"),
        (["--quantization", "int3"], ConfigError, "int3"),
        (["--temperature", "2"], ConfigError, "distillation needs a teacher"),
        (["--dataset", "some/thing"], ConfigError, "either dataset or files"),
        (["--recipe", "digits"], ConfigError, "--recipe says everything but --output_dir"),
    ],
)
def test_wrong_options_are_refused_before_training(tmp_path, monkeypatch, extra, error, message):
    with pytest.raises(error, match=message):
        run(monkeypatch, "text_classification", *text_run(tmp_path), *extra)
    assert not (tmp_path / "out" / "compressed").exists()


def test_a_finished_folder_is_never_written_over(tmp_path, monkeypatch):
    (tmp_path / "out" / "compressed").mkdir(parents=True)
    (tmp_path / "out" / "compressed" / "precious").write_text("x")
    with pytest.raises(OutputExistsError):
        run(monkeypatch, "text_classification", *text_run(tmp_path))


def test_options_override_a_file_and_measure_writes_records(tmp_path, monkeypatch, capsys, quick_measures):
    (tmp_path / "c.yaml").write_text("pruning: {sparsity: 0.9, scope: uniform, frequency: 1}\n")
    extra = ["--compression", tmp_path / "c.yaml", "--sparsity", "0.25", "--layers", "1", "--measure"]
    run(monkeypatch, "text_classification", *text_run(tmp_path), *extra)
    records = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out" / "records").glob("*.json")}
    assert set(records) == {"start", "model"}
    assert records["model"]["method"]["pruning"] == {"sparsity": 0.25, "scope": "uniform", "frequency": 1}
    model = Classifier.from_pretrained(tmp_path / "out" / "compressed" / "model")
    assert model.config.num_hidden_layers == 1
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert "weights on disk" in capsys.readouterr().out


def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path, monkeypatch):
    prune = ["--sparsity", "0.5", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    base = text_run(tmp_path)
    at = base.index("--output_dir") + 1
    for folder, resume in ((whole, []), (again, ["--resume_from_checkpoint", whole / "checkpoint-3"])):
        base[at] = folder
        run(monkeypatch, "text_classification", *base, *prune, *resume)
    one, other = ((f / "compressed" / "model" / "model.safetensors").read_bytes() for f in (whole, again))
    assert one == other


def test_a_recipe_is_run_as_hf_compress_does(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("hf_compress.recipes.recipe.run_recipe", lambda *a: asked.append(a))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "text_classification", "--recipe", "my.yaml", "--output_dir", "runs/mine")
    assert stop.value.code == 0
    assert asked == [("my.yaml", "runs/mine")]


def test_a_pushed_run_sends_the_finished_model_with_its_card(tmp_path, monkeypatch, quick_measures):
    from hub.hub_server import HubServer, use_hub

    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path)
        push = ["--push_to_hub", "--hub_model_id", "tester/small", "--quantization", "int8", *FFN]
        run(monkeypatch, "text_classification", *text_run(tmp_path), *push)
        sent, other = server.files("tester/small"), server.files("tester/small-quantized")
    folder = tmp_path / "out" / "compressed" / "model"
    assert sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert "quantization_config" in json.loads(other["config.json"])
    assert b"accuracy" in sent["README.md"]
    assert not any(name.endswith(".bin") for name in {*sent, *other})


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    base, file = prepare(tmp_path, "text_classification")
    shared = ["--model", base, "--teacher", base, "--train_file", file, "--test_file", file, "--text_columns", "text"]
    shared += ["--sparsity", "0.5", "--report_to", "none", "--use_cpu", "--max_steps", "4", "--logging_steps", "1"]
    shared += ["--save_strategy", "steps", "--save_steps", "4", "--optim", "sgd", "--learning_rate", "0.1"]
    # One process takes every other sample of the order that two processes share.
    shared += ["--train_sampling_strategy", "sequential"]
    # All 24 rows are trained on: processes repeat rows where a last batch is not full.
    shared += ["--validation_file", file]
    script = str(SCRIPTS / "train_text_classification.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    losses, weights = [], []
    for launcher, size in (([sys.executable, script], 8), (torchrun, 4)):
        out = tmp_path / f"out{size}"
        command = [*launcher, *shared, "--output_dir", str(out), "--per_device_train_batch_size", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        history = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
        weights.append(Classifier.from_pretrained(out / "compressed" / "model").state_dict())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-5), name
        assert torch.equal(weight == 0, weights[1][name] == 0), name


def test_scripts_are_short():
    for path in SCRIPTS.glob("train_*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name
    assert {p.stem.removeprefix("train_") for p in SCRIPTS.glob("train_*.py")} == set(ALL)


def test_strings_are_labels_too(tmp_path, monkeypatch):
    base, _ = prepare(tmp_path, "text_classification")
    rows = {"text": tiny_tasks.sentences(), "label": ["bad" if i % 2 else "good" for i in range(24)]}
    features = Features({"text": Value("string"), "label": Value("string")})
    file = tiny_tasks.write(tmp_path / "named.parquet", rows, features)
    out = tmp_path / "out"
    files = ["--train_file", file, "--test_file", file]
    run(monkeypatch, "text_classification", "--model", base, *files, "--output_dir", out, *STEPS)
    assert Classifier.from_pretrained(out / "compressed" / "model").config.id2label == {0: "bad", 1: "good"}
