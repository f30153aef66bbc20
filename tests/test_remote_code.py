"""Code that lies in a model folder is never run."""

import json

import pytest

from hf_compress import inspect_model, measure, quantize, run_recipe
from hf_compress.cli import main
from hf_compress.distillation.teacher import load_teacher_model


@pytest.fixture
def hostile(tmp_path):
    """A model folder whose config asks for its own classes; its code leaves a trace when it runs."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    (folder / "evil.py").write_text(code)
    classes = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    classes |= {"AutoModelForSequenceClassification": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "evil", "architectures": ["Model"], "auto_map": classes}))
    return folder, trace


def recipe(source):
    files = {"train": "x.csv", "test": "x.csv"}
    stages = [{"name": "teacher", "kind": "train", "source": source, "arguments": {"max_steps": 1}}]
    return {"name": "x", "task": {"type": "text-classification", "files": files}, "stages": stages}


@pytest.mark.parametrize(
    "use",
    [
        inspect_model,
        load_teacher_model,
        lambda f: quantize(f, f.parent / "out"),
        measure,
        lambda f: run_recipe(recipe(str(f)), f.parent / "run"),
    ],
    ids=["inspect", "teacher", "quantize", "measure", "recipe"],
)
def test_code_in_a_model_folder_never_runs(hostile, tmp_path, monkeypatch, use):
    folder, trace = hostile
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, RuntimeError, OSError)):
        use(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "command",
    ["inspect MODEL", "shrink MODEL OUT --keep ffn=0.5", "prune MODEL OUT --text x.csv --sparsity 0.5",
     "quantize MODEL OUT", "export MODEL OUT", "measure MODEL --no-memory", "compare MODEL", "card MODEL MODEL",
     "push MODEL me/x --dry-run", "inspect MODEL --latency", "push MODEL me/x --quantized MODEL --dry-run"],
)  # fmt: skip
def test_no_verb_runs_code_in_a_model_folder(hostile, tmp_path, monkeypatch, command):
    folder, trace = hostile
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,1\n")
    monkeypatch.chdir(tmp_path)
    main([part.replace("MODEL", str(folder)).replace("OUT", str(tmp_path / "out")) for part in command.split()])
    assert not trace.exists()
    assert not (tmp_path / "out").exists()
