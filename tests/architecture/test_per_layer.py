"""Another number of heads and neurons in each layer: equal to the masked model, loaded by the code beside it alone."""

import json
import subprocess
import sys

import pytest
import torch
from architectures import build

from hf_compress import OneShotConfig, prune_oneshot, save_per_layer
from hf_compress.architecture.per_layer import cut_per_layer, per_layer_groups
from hf_compress.errors import ArchitectureError, ConfigError

READER = """
import json, sys, torch, transformers
from pathlib import Path
errors = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    auto = next(iter(json.loads((folder / "config.json").read_text())["auto_map"]))
    model, info = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(v for k, v in info.items() if k.endswith("_keys")), info
    case = torch.load(folder / "case.pt", weights_only=True)
    with torch.no_grad():
        logits = model.eval()(**case["inputs"]).logits
    errors[folder.name] = float((logits - case["logits"]).abs().max() / case["logits"].abs().max())
assert "hf_compress" not in sys.modules
print(json.dumps(errors))
"""


def prune_units(model, batches, **options):
    return prune_oneshot(model, OneShotConfig(**options), batches)


def batches(model, number=3):
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)} for _ in range(number)]
    found = [{"input_ids": torch.randint(3, 60, (4, 9), generator=generator)} for _ in range(number)]
    return [{**b, "decoder_input_ids": b["input_ids"]} if model.config.is_encoder_decoder else b for b in found]


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "vit", "bart"])
def test_any_numbers_of_heads_and_neurons(name):
    model = build(name)
    kept = {}
    for i, group in enumerate([*per_layer_groups(model, "ffn"), *per_layer_groups(model, "heads")]):
        kept[group] = torch.arange(i % (group.count - 1) + 1) + (
            1 if i % 2 and i % (group.count - 1) + 2 <= group.count else 0
        )
    # It compares with the masked model itself.
    smaller = cut_per_layer(model, kept)
    sizes = {len(units) for units in kept.values()}
    assert len(sizes) > 2
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_folders_load_without_hf_compress_and_only_knowingly(tmp_path):
    import transformers

    for name in ("bert", "gpt2", "llama", "vit", "bart"):
        model = build(name)
        keep = {"ffn": 0.4} | ({"heads": 0.6} if name != "gpt2" else {})
        config = OneShotConfig(keep=keep, layout="per_layer")
        output = None if name == "gpt2" else tmp_path / name
        smaller = prune_oneshot(model, config, batches(model), output)
        if output is None:
            save_per_layer(smaller, tmp_path / name)
        inputs = batches(model)[0]
        with torch.no_grad():
            torch.save({"inputs": inputs, "logits": smaller(**inputs).logits}, tmp_path / name / "case.pt")
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(error < 1e-5 for error in json.loads(done.stdout.strip().split("\n")[-1]).values())
    with pytest.raises(RuntimeError, match="size"):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "bert")


def test_all_units_compete_and_no_layer_is_emptied():
    model = build("bert")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer.0.intermediate" in name or "layer.0.output.dense" in name:
                parameter.mul_(1e-3)
    smaller = prune_units(model, batches(model), keep={"ffn": 0.5}, layout="per_layer", criterion="magnitude")
    widths = [smaller.bert.encoder.layer[i].intermediate.dense.out_features for i in range(3)]
    assert sum(widths) == 72
    assert widths[0] == round(0.05 * 48)


def test_refusals(tmp_path):
    model = build("bert")
    with pytest.raises(ConfigError, match="layout must be"):
        prune_units(model, batches(model), keep={"ffn": 0.5}, layout="free")
    with pytest.raises(ArchitectureError, match="tied over layers"):
        prune_units(build("t5"), batches(build("t5")), keep={"heads": 0.5}, layout="per_layer")
    for fused in ("gpt2", "phi3"):
        with pytest.raises(ArchitectureError, match="number of their units from their weights"):
            prune_units(build(fused), batches(build(fused)), keep={"heads": 0.5}, layout="per_layer")
    with pytest.raises(ArchitectureError, match="at least one unit"):
        cut_per_layer(model, {per_layer_groups(model, "ffn")[0]: torch.tensor([], dtype=torch.long)})
    with pytest.raises(ArchitectureError, match=r"use model\.save_pretrained"):
        save_per_layer(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
