"""What 43 architectures can lose, and that a plain model is left with the outputs of the masked one."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
import transformers
from architectures import MODELS, build

from hf_compress import inspect_model, shrink
from hf_compress.architecture.anatomy import probe
from hf_compress.architecture.verify import made_up
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError

BERT, LLAMA = "ffn hidden layers", "ffn heads hidden layers"
AXES = {
    **dict.fromkeys(
        ["bert", "roberta", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert", "albert", "xlm-r"], BERT
    ),
    **dict.fromkeys(["gpt2", "gpt-neox", "opt", "falcon", "bart", "pegasus", "whisper", "clip"], BERT),
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "mixtral"], LLAMA),
    **dict.fromkeys(["vit", "deit", "beit", "ast"], LLAMA),
    "dinov2": LLAMA if tiny.dinov2_can_lose_heads() else BERT,
    "bloom": "hidden layers",
    "gemma2": "ffn heads layers",
    "gemma3": "ffn heads layers",
    "t5": "ffn head_size heads hidden layers",
    "marian": "ffn layers",
    "swin": "hidden layers",
    "convnext": "filters layers",
    "resnet": "filters layers",
    "mobilenetv2": "",
    "segformer": "ffn filters layers",
    "wav2vec2": "ffn filters layers",
    "hubert": "ffn filters layers",
    "wavlm": "ffn filters layers",
}
# Why the others cannot lose hidden width: none of these is a matter of this package.
HIDDEN = {
    "gemma2": "used hidden_size as a number",
    "gemma3": "used hidden_size as a number",
    "marian": "embed_positions.weight is computed from it and not saved",
    "wav2vec2": "told apart at wav2vec2.encoder.pos_conv_embed.conv",
    "hubert": "told apart at hubert.encoder.pos_conv_embed.conv",
    "wavlm": "told apart at wavlm.encoder.pos_conv_embed.conv",
}
READER = """
import json, sys, torch, transformers
from pathlib import Path
errors = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    case = torch.load(folder / "case.pt", weights_only=True)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(v for k, v in info.items() if k.endswith("_keys")), info
    with torch.no_grad():
        output = model.eval()(**case["inputs"])
    errors[folder.name] = max(float((output[k] - v).abs().max() / v.abs().max()) for k, v in case["outputs"].items())
assert "hf_compress" not in sys.modules
print(json.dumps(errors))
"""


def fewer(model, axis):
    """Return what to ask for: every axis at half its size, every stack without its last layer."""
    if axis == "head_size":
        return {"hidden": {found.field: 0.5 for found in find_width_axes(model)[0] if found.name == axis}}
    if axis != "layers":
        return {axis: 0.5}
    stacks = {found.field: list(range(found.size - 1)) for found in probe(model).named("layers") if found.size > 1}
    return {"layers": stacks} if stacks else {}


@pytest.mark.parametrize("name", MODELS)
def test_every_axis_shrinks_or_is_refused_with_a_reason(name):
    model = build(name)
    report = inspect_model(model)
    assert sorted({axis.name for axis in report.axes if axis.is_offered}) == AXES[name].split()
    for axis in {"ffn", "heads", "hidden", "filters"} - set(AXES[name].split()):
        with pytest.raises(ArchitectureError, match=HIDDEN.get(name, ": ") if axis == "hidden" else ": "):
            shrink(model, **{axis: 0.5})


# Each axis apart and all at once are 170 folders.
@pytest.mark.parametrize(
    ("is_apart", "at_least"), [(False, 40), pytest.param(True, 150, marks=pytest.mark.slow)], ids=["at once", "apart"]
)
def test_all_of_them_load_in_a_process_without_hf_compress(tmp_path, is_apart, at_least):
    for name in MODELS:
        model = build(name)
        parts = {axis: fewer(model, axis) for axis in AXES[name].split()}
        if not is_apart or len(parts) > 1:
            parts = {**(parts if is_apart else {}), "all": {k: v for part in parts.values() for k, v in part.items()}}
        for axis, options in parts.items():
            # `shrink` itself compares with the masked model.
            save(shrink(model, **options), tmp_path / f"{name} {axis}")
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.strip().split("\n")[-1])
    assert len(errors) >= at_least
    assert {name: error for name, error in errors.items() if not error < 1e-5} == {}


def save(model, folder):
    model.save_pretrained(folder)
    inputs, outputs = made_up(model)
    torch.save({"inputs": inputs, "outputs": outputs}, folder / "case.pt")


def test_hidden_width_is_cut_as_by_hand():
    model = build("llama")
    kept = [0, 3, 4, 9, 10, 11, 17, 18, 20, 25, 28, 31]
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "hidden_size": 12, "head_dim": 8})
    by_hand = transformers.LlamaForCausalLM(config).eval()
    reads = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
    state = {}
    for name, value in model.state_dict().items():
        layer = name.split(".")[-2]
        state[name] = value[:, kept] if layer in reads else value[kept]
    by_hand.load_state_dict(state)
    shrunk = shrink(model, hidden=kept)
    assert shrunk.config.hidden_size == 12
    assert all(
        torch.equal(a, b) for a, b in zip(shrunk.state_dict().values(), by_hand.state_dict().values(), strict=True)
    )


def test_fractions_are_rounded_to_fast_multiples():
    shrunk = shrink(build("llama"), hidden=0.45, ffn=0.7, multiple=8)
    assert (shrunk.config.hidden_size, shrunk.config.intermediate_size) == (16, 32)
    assert shrink(build("llama"), hidden=0.45, ffn=0.7).config.intermediate_size == 34
    with pytest.raises(ArchitectureError, match="multiple: expected a whole number"):
        shrink(build("llama"), ffn=0.7, multiple=0)


def test_where_heads_follow_the_width_whole_heads_go_with_it():
    model = build("bert")
    shrunk = shrink(model, hidden=16)
    assert (shrunk.config.hidden_size, shrunk.config.num_attention_heads) == (16, 2)
    full, cut = (m.bert.encoder.layer[0].attention.self.query.weight for m in (model, shrunk))
    heads = full.view(4, 8, 32)
    rows = [heads[i] for i in range(4) if any(torch.isin(heads[i], head).sum() >= 64 for head in cut.view(2, 8, 16))]
    assert len(rows) == 2
    assert cut.shape == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 17}, "one of 8, 16, 24, 32, .* found 17; nearest legal: 16"),
        ({"hidden": 0}, "from 1 to 32"),
        ({"hidden": 1.5}, "above 0 and below 1"),
        ({"hidden": "half"}, "a whole number"),
        ({"hidden": {"width": 16}}, "expected one of hidden_size"),
        ({"filters": 8}, "found none"),
    ],
)
def test_illegal_widths_are_refused_before_any_work(options, message):
    with pytest.raises(ArchitectureError, match=message):
        shrink(build("bert"), **options)


def test_filters_of_each_stage_and_their_running_statistics():
    model = build("resnet")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    shrunk = shrink(model, filters={"hidden_sizes[1]": 6})
    assert shrunk.config.hidden_sizes == [8, 6]
    assert shrunk.classifier[1].in_features == 6
    with pytest.raises(ArchitectureError, match="expected one of"):
        shrink(model, filters={"hidden_sizes": 6})
