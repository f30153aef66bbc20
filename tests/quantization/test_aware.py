"""Training with rounded weights: what is trained is what the codes give, and everything else stays as it was."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from architectures import build
from forks import two_forks
from transformers import Trainer

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    PruningConfig,
    QuantizationConfig,
    export,
)
from hf_compress.errors import QuantizationError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.quantization.aware import FakeQuantizer

WIDE = {"hidden_size": 64, "intermediate_size": 128}
SCRIPT = Path(__file__).with_name("aware_run.py")


def train(model, folder, config, pruning=None, distillation=None, teacher=None, **arguments):
    trainer = CompressionTrainer(
        model,
        tiny.arguments(folder, **arguments),
        compression=CompressionConfig(distillation, pruning, config),
        teacher=teacher,
        train_dataset=tiny.sentences(),
        eval_dataset=tiny.sentences(8),
    )
    trainer.train()
    return trainer


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits.float()


@pytest.mark.parametrize("ranges", ["observed", "learned"])
@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    # Where inputs are rounded too, float noise moves some to the next code; 4-bit kernels of a CPU use bfloat16.
    [("torchao-int8", 1e-6), ("torchao-int8-dynamic", 5e-3), ("torchao-int4", 1e-6), ("int8", 0.02), ("nf4", 0.02)],
)
def test_the_quantized_folder_gives_what_was_trained(tmp_path, scheme, tolerance, ranges):
    if "torchao" in scheme:
        pytest.importorskip("torchao")
    options = {"double_quant": False} if scheme == "nf4" else {}
    config = QuantizationConfig(scheme, aware=True, ranges=ranges, **options)
    model = tiny.bert(**WIDE)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = train(model, tmp_path / "run", config, learning_rate=5e-3)
    inputs = dummy_inputs(model, 4)
    trained = logits(model, inputs)
    folders = trainer.save_compressed(tmp_path / "out")
    found = logits(type(model).from_pretrained(folders["quantized"]), inputs)
    assert (found - trained).norm() / trained.norm() < tolerance
    # And rounding mattered, and something was learnt.
    model.load_state_dict(before, strict=False)
    assert (logits(model, inputs) - trained).norm() / trained.norm() > 0.05


def test_forward_and_backward_are_those_of_a_naive_straight_through_layer():
    model = tiny.bert(**WIDE)
    config = QuantizationConfig("torchao-int4", aware=True, group_size=16)
    FakeQuantizer(config).attach(model)
    layer = model.bert.encoder.layer[0].intermediate.dense
    inputs = torch.randn(3, 64, requires_grad=True)
    layer(inputs).square().sum().backward()
    weight = layer.weight.detach()
    rounded = torch.empty_like(weight)
    for row in range(len(weight)):
        for first in range(0, 64, 16):
            part = weight[row, first : first + 16]
            inverse = 1 / (part.abs().max() / 7.5)
            rounded[row, first : first + 16] = (part * inverse).round().clamp(-8, 7) / inverse
    output = inputs.detach() @ rounded.T + layer.bias.detach()
    assert torch.allclose(layer(inputs), output, atol=1e-6)
    # The gradient of the weight is that at the rounded weight, handed through the rounding.
    assert torch.allclose(layer.weight.grad, (2 * output).T @ inputs.detach(), atol=1e-4)
    assert torch.allclose(inputs.grad, 2 * output @ rounded, atol=1e-4)


def test_the_learned_share_gets_the_gradient_of_what_it_clips():
    config = QuantizationConfig("torchao-int8", aware=True, ranges="learned")
    model = tiny.bert(**WIDE)
    quantizer = FakeQuantizer(config)
    quantizer.attach(model)
    rounding = next(iter(quantizer.layers.values()))
    weight = torch.randn(64, 64)
    with torch.no_grad():
        rounding.share.fill_(0.0)  # half of the largest
    direction = torch.randn(64, 64)
    (rounding.clip(weight) * direction).sum().backward()
    largest = weight.abs().amax(-1, keepdim=True)
    is_clipped = weight.abs() > largest / 2
    assert is_clipped.any()
    # d(bound) / d(share) = largest x sigmoid'(0), and each clipped entry is its sign times the bound.
    expected = ((direction * weight.sign() * is_clipped).sum(-1, keepdim=True) * largest * 0.25)[..., None]
    assert torch.allclose(rounding.share.grad, expected, atol=1e-4)


def test_without_aware_nothing_is_rounded_and_names_stay_plain(tmp_path):
    pytest.importorskip("torchao")
    arguments = {"train_dataset": tiny.sentences()}
    stock, plain = tiny.bert(**WIDE), tiny.bert(**WIDE)
    Trainer(stock, tiny.arguments(tmp_path / "a"), **arguments).train()
    config = CompressionConfig(quantization=QuantizationConfig("torchao-int8"))
    CompressionTrainer(plain, tiny.arguments(tmp_path / "b"), compression=config, **arguments).train()
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), plain.parameters(), strict=True))
    aware = tiny.bert(**WIDE)
    trainer = train(aware, tmp_path / "c", QuantizationConfig("torchao-int8", aware=True, ranges="learned"))
    assert aware.state_dict().keys() == stock.state_dict().keys()
    trainer.save_model()
    _, info = type(aware).from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_masks_survive_and_distillation_goes_along(tmp_path):
    pytest.importorskip("torchao")
    model = tiny.bert(**WIDE)
    config = QuantizationConfig("torchao-int4", aware=True)
    trainer = train(
        model,
        tmp_path / "run",
        config,
        pruning=PruningConfig(sparsity=0.6),
        distillation=DistillationConfig(),
        teacher=tiny.bert(1, **WIDE),
    )
    masks = trainer.pruner.masks
    folders = trainer.save_compressed(tmp_path / "out")
    plain = dict(type(model).from_pretrained(folders["model"]).named_parameters())
    quantized = type(model).from_pretrained(folders["quantized"])
    zeros = total = 0
    for name, mask in masks.items():
        stored = quantized.get_submodule(name.removesuffix(".weight")).weight
        stored = stored.dequantize() if hasattr(stored, "dequantize") else stored
        assert not stored[~mask].any()
        assert not plain[name][~mask].any()
        zeros, total = zeros + int((~mask).sum()), total + mask.numel()
    assert abs(zeros - 0.6 * total) < len(masks)


def test_whole_units_go_and_what_is_left_gives_what_was_trained(tmp_path):
    pytest.importorskip("torchao")
    model = tiny.bert(**WIDE)
    config, pruning = QuantizationConfig("torchao-int8", aware=True), PruningConfig(sparsity=0.5, structure="ffn")
    trainer = train(model, tmp_path / "run", config, pruning=pruning, learning_rate=5e-3)
    inputs = dummy_inputs(model, 4)
    trained = logits(model, inputs)
    folders = trainer.save_compressed(tmp_path / "out")
    again = type(model).from_pretrained(folders["quantized"])
    assert again.config.intermediate_size == 64
    assert (logits(again, inputs) - trained).norm() / trained.norm() < 1e-5
    # And training may go on with rounded weights.
    assert torch.equal(logits(model, inputs), trained)


def test_observed_ranges_of_activations_are_what_the_exported_program_uses(tmp_path):
    pytest.importorskip("onnxruntime")
    model = tiny.bert(**WIDE)
    config = QuantizationConfig("torchao-int8", aware=True, activations="observed", freeze=0.5)
    trainer = train(model, tmp_path / "run", config)
    inputs = dummy_inputs(model, 4)
    trained = logits(model, inputs)
    folder = export(model, "onnx", tmp_path / "out")
    from hf_compress.measurement.exported import ExportedModule

    exported = ExportedModule(folder)(**inputs).logits
    assert torch.equal(logits(model, inputs), trained)
    assert (folder / "model.onnx.data").stat().st_size < 0.5 * sum(p.numel() * 4 for p in model.parameters())
    trainer._sides[0].quantizer.detach()
    # On processors without 8-bit products in 32 bit a sum may come out on the other side of half a step.
    assert (exported - trained).norm() < 0.5 * (logits(model, inputs) - trained).norm()


def test_ranges_follow_the_batches_until_they_freeze():
    model = tiny.bert(**WIDE)
    quantizer = FakeQuantizer(QuantizationConfig("int8", aware=True, activations="observed", freeze=0.5))
    quantizer.attach(model)
    rounding = quantizer.layers["bert/encoder/layer/0/attention/self/query"]
    expected = None
    for step in range(8):
        seen = []
        handle = model.bert.encoder.layer[0].attention.self.query.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0])
        )
        for micro in range(2):
            model.train()(**dummy_inputs(model, 2, seed=10 * step + micro))
        handle.remove()
        high = float(torch.cat(seen).max())
        quantizer.step((step + 1) / 8)
        if step + 1 < 4:
            expected = high if expected is None else 0.99 * expected + 0.01 * high
        assert float(rounding.high) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two that fork: what is resumed is another process than what was killed, with other hashes."""
    with two_forks(SCRIPT, tmp_path_factory) as both:
        yield both


@pytest.mark.parametrize("options", [{"ranges": "learned"}, {"activations": "observed"}], ids=["learned", "observed"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, runs, options):
    def run(number, folder, *trigger):
        return runs[number](tmp_path / folder, json.dumps(options), *trigger)

    done = run(0, "whole")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(0, "killed", "step:5").returncode == -signal.SIGKILL
    again = run(1, "killed", "resume")
    assert again.returncode == 0, again.stderr[-2000:]
    for name in ("model.safetensors", "checkpoint-8/quantization_state.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_two_processes_equal_one(tmp_path):
    options = json.dumps({"activations": "observed", "ranges": "learned"})
    alone = [sys.executable, SCRIPT, tmp_path / "one", options, "batch:8"]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    both += ["--rdzv-endpoint", "localhost:0", SCRIPT, tmp_path / "two", options, "batch:4"]
    for command in (alone, both):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    from safetensors.torch import load_file

    for name in ("model.safetensors", "checkpoint-4/quantization_state.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert all(torch.allclose(one[key], two[key], atol=2e-5) for key in one)


def test_what_training_cannot_do_is_refused_before_it_starts(tmp_path):
    cases = [
        (QuantizationConfig("torchao-int4", aware=True, group_size=7), "no linear layer that torchao-int4 can round"),
        (QuantizationConfig("int8", aware=True, skip_modules=("quary",)), "skip_modules matches no module: quary"),
        (QuantizationConfig("gptq", aware=True), "cannot simulate gptq"),
        # After training, but seen before it.
        (QuantizationConfig("int8", skip_modules=("quary",)), "skip_modules matches no module: quary"),
        (QuantizationConfig("torchao-int4", group_size=7), "64 inputs are no multiple of the group size 7"),
    ]
    for config, message in cases:
        with pytest.raises(QuantizationError, match=message):
            train(tiny.bert(**WIDE), tmp_path / "run", config)
    with pytest.raises(QuantizationError, match="its inputs have 4 dimensions"):
        train(build("convnext"), tmp_path / "run", QuantizationConfig("int8"))
    assert not list(tmp_path.rglob("*.safetensors"))
