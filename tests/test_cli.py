import json
import subprocess
import sys
from pathlib import Path

import language
import pytest
import tiny
import tiny_tasks
import torch
from architectures import build
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hf_compress.cli import main


@pytest.fixture
def model(tmp_path):
    tiny.bert(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_inspect_quantize_measure_compare_card_and_push_in_a_row(model, tmp_path, capsys):
    small, records = tmp_path / "small", tmp_path / "records"
    assert main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 0
    assert main(["quantize", str(model), str(small), "--scheme", "nf4", "--skip-modules", "pooler"]) == 0
    measured = ["measure", f"dense={model}", f"nf4={small}", "--batch-sizes", "1", "--length", "8", "--no-memory"]
    assert main([*measured, "--output-dir", str(records), "--json"]) == 0
    assert {p.name for p in records.iterdir()} == {"dense.json", "nf4.json"}
    assert main(["compare", str(records), "--output-dir", str(tmp_path / "report")]) == 0
    assert "weights on disk" in capsys.readouterr().out
    assert (tmp_path / "report" / "comparison.md").is_file()
    assert main(["card", str(small), str(records), "--license", "apache-2.0", "--base-model", "someone/dense"]) == 0
    assert "base_model_relation: quantized" in (small / "README.md").read_text()
    assert main(["push", str(small), "someone/small", "--dry-run", "--json"]) == 0
    sent = [
        f["path"] if isinstance(f, dict) else f[0]
        for f in json.loads(capsys.readouterr().out.split("\n", 1)[1])["files"]
    ]
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors"]


def test_prune_and_shrink_make_plain_folders(tmp_path, capsys):
    source, text = language.save_model(tmp_path / "model"), tmp_path / "my.txt"
    text.write_text(language.text())
    (tmp_path / "few.txt").write_text("the cat sees")
    sizes = ["--text", str(text), "--samples", "8", "--length", "16"]
    made = {
        "half": ["prune", "--sparsity", "0.5", *sizes],
        "pairs": ["prune", "--structure", "2:4", "--criterion", "wanda", *sizes],
        "narrow": ["prune", "--keep", "ffn=0.5", "layers=2", *sizes],
        "small": ["shrink", "--keep", "ffn=24", "--vocabulary", str(tmp_path / "few.txt")],
    }
    for name, (verb, *options) in made.items():
        assert main([verb, str(source), str(tmp_path / name), *options]) == 0, name
    models = {name: AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in made}
    assert all(AutoTokenizer.from_pretrained(tmp_path / name)("the cat")["input_ids"] for name in made)
    for name in ("half", "pairs"):
        assert float((models[name].model.layers[0].mlp.up_proj.weight == 0).double().mean()) == 0.5
    assert (models["narrow"].config.intermediate_size, models["narrow"].config.num_hidden_layers) == (24, 2)
    assert models["small"].config.intermediate_size == 24
    assert models["small"].config.vocab_size < models["half"].config.vocab_size
    settings = json.loads((tmp_path / "half" / "oneshot.json").read_text())["calibration"]
    assert (settings["samples"], settings["length"], settings["seed"], settings["tokens"]) == (8, 16, 0, 128)


def test_units_of_one_of_several_fields_are_named(tmp_path):
    source = tmp_path / "t5"
    build("t5").save_pretrained(source)
    tiny_tasks.tokenizer().save_pretrained(source)
    assert main(["shrink", str(source), str(tmp_path / "small"), "--keep", "layers.num_layers=2", "ffn=8"]) == 0
    whole, config = (AutoModelForSeq2SeqLM.from_pretrained(p).config for p in (source, tmp_path / "small"))
    assert (config.num_layers, config.num_decoder_layers, config.d_ff) == (2, whole.num_decoder_layers, 8)
    assert whole.num_layers == 3


def test_sequence_to_sequence_models_are_pruned_on_plain_text(tmp_path):
    source, text = tiny_tasks.save_t5(tmp_path / "t5"), tmp_path / "my.txt"
    text.write_text(" ".join(tiny_tasks.sentences(40)))
    options = ["--text", str(text), "--sparsity", "0.5", "--samples", "4", "--length", "8"]
    assert main(["prune", source, str(tmp_path / "out"), *options]) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert float((model.encoder.block[0].layer[0].SelfAttention.q.weight == 0).double().mean()) == 0.5


def test_two_processes_prune_one_folder_together(tmp_path):
    source, text = language.save_model(tmp_path / "model"), tmp_path / "my.txt"
    text.write_text(language.text())
    # Wanda only chooses: the least squares of SparseGPT amplify the rounding of sums in another order.
    options = ["--text", str(text), "--sparsity", "0.5", "--criterion", "wanda", "--samples", "16", "--length", "16"]
    assert main(["prune", str(source), str(tmp_path / "one"), *options]) == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "hf_compress",
    ]
    done = subprocess.run(
        [*launch, "prune", str(source), str(tmp_path / "two"), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.named_parameters():
        assert torch.allclose(weight, two.get_parameter(name), atol=1e-4), name
    settings = json.loads((tmp_path / "two" / "oneshot.json").read_text())["calibration"]
    assert (settings["samples"], settings["processes"]) == (16, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "DIR/nowhere", "DIR/out", "--text", "DIR/no.txt", "--sparsity", "0.5"], "expected a text file"),
        (["prune", "DIR/nowhere", "DIR/out", "--text", "x"], "give sparsity"),
        (["prune", "DIR/nowhere", "DIR/out", "--text", "x", "--keep", "ffn"], "expected UNIT=AMOUNT"),
        (["shrink", "DIR/nowhere", "DIR/out", "--keep", "neurons=3"], "expected ffn, heads"),
        (["shrink", "DIR/nowhere", "DIR/out", "--keep", "ffn=half"], "a number or a fraction"),
        (["run", "digit"], "did you mean 'digits'"),
        (["run", "digits", "--set", "sed=1", "--output-dir", "DIR/run"], "did you mean 'seed'"),
        (["quantize", "DIR/nowhere", "DIR/out"], "there is no model folder"),
        (["measure", "DIR"], "no *.safetensors weights"),
        (["compare", "DIR"], "holds no records"),
        (["measure", "DIR/old/model", "DIR/new/model"], "two models are called 'model'"),
        (["inspect", "nobody/nothing-like-this"], "nobody/nothing-like-this"),
        (["push", "DIR/nowhere", "me/x", "--dry-run"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_1(arguments, message, tmp_path, capsys):
    assert main([a.replace("DIR", str(tmp_path)) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_the_installed_command_and_the_module_are_the_same():
    command = Path(sys.executable).with_name("hf-compress")
    texts = [
        subprocess.run([*c, "--help"], capture_output=True, text=True).stdout
        for c in ([command], [sys.executable, "-m", "hf_compress"])
    ]
    assert texts[0] == texts[1]
    assert all(verb in texts[0] for verb in ("run", "inspect", "quantize", "measure", "compare", "card", "push"))
