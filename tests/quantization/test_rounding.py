"""Rounding against naive loops, against what the runtimes store, and its straight-through gradient."""

import pytest
import torch

from hf_compress.quantization import rounding


def naive_groups(weight, bits, group):
    """Round entry by entry, with torchao's scale: the largest absolute value over half of the steps."""
    found = torch.empty_like(weight)
    for i, row in enumerate(weight):
        for first in range(0, len(row), group or len(row)):
            part = row[first : first + (group or len(row))]
            scale = max(abs(float(x)) for x in part) / ((2**bits - 1) / 2)
            for j, x in enumerate(part):
                code = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(float(x) / scale)))
                found[i, first + j] = code * scale
    return found


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 8), (4, None), (2, 4)])
def test_groups_are_rounded_as_a_naive_loop_does(bits, group):
    weight = torch.randn(6, 16)
    expected = naive_groups(weight, bits, group)
    found = rounding.round_groups(weight, bits, group)
    # The largest entry lies exactly between two codes, where the loop and torchao may differ by one.
    differs = (found - expected).abs() > 1e-5
    largest = weight.reshape(6, -1, group or 16).abs()
    assert not (differs.reshape(largest.shape) & (largest < largest.amax(-1, keepdim=True))).any()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (4, None)])
def test_groups_are_what_torchao_stores(bits, group):
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.quantization.granularity import PerAxis, PerGroup

    layer = torch.nn.Linear(64, 48)
    weight = layer.weight.detach().clone()
    how = PerAxis(0) if group is None else PerGroup(group)
    settings = quantization.IntxWeightOnlyConfig(torch.int8 if bits == 8 else torch.int4, how)
    quantization.quantize_(layer, settings)
    assert torch.equal(rounding.round_groups(weight, bits, group), layer.weight.dequantize())


@pytest.mark.parametrize(("kind", "values"), [("nf4", rounding.NF4), ("fp4", rounding.FP4)])
def test_blocks_are_what_bitsandbytes_stores(kind, values):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(24, 128)
    stored = dequantize_4bit(*quantize_4bit(weight, quant_type=kind, compress_statistics=False))
    assert torch.equal(rounding.round_blocks(weight, values), stored)


def test_rows_are_what_llm_int8_stores():
    from bitsandbytes.functional import int8_vectorwise_quant

    weight = torch.randn(24, 48).half()
    codes, scales, _ = int8_vectorwise_quant(weight)
    stored = codes.float() * scales[:, None] / 127
    off = (rounding.round_rows(weight.float()) - stored).abs() > 1e-4
    # Half precision holds few numbers, so some lie exactly between two codes.
    assert off.float().mean() < 0.005


@pytest.mark.parametrize("rounds", ["rows", "groups", "blocks", "tokens"])
def test_zeros_stay_zero_and_nothing_moves_by_more_than_half_a_step(rounds):
    weight = torch.randn(8, 64) * (torch.rand(8, 64) > 0.5)
    found = {
        "rows": lambda: rounding.round_rows(weight),
        "groups": lambda: rounding.round_groups(weight, 8, 16),
        "blocks": lambda: rounding.round_blocks(weight, rounding.NF4),
        "tokens": lambda: rounding.round_tokens(weight),
    }[rounds]()
    assert torch.equal(found[weight == 0], torch.zeros_like(found[weight == 0]))
    widest = {"blocks": 0.16}.get(rounds, 0.51 / 127)
    assert ((found - weight).abs() <= widest * weight.abs().amax(-1, keepdim=True) + 1e-6).all()
    assert not torch.equal(found, weight)


@pytest.mark.parametrize("values", [(-1.5, 3.0), (0.5, 2.0), (-4.0, -1.0)])
def test_a_range_is_rounded_as_torchs_own_fake_quantization_does(values):
    inputs = torch.linspace(-6, 6, 333)
    low, high = map(torch.tensor, values)
    scale, zero = rounding.affine(low, high)
    expected = torch.fake_quantize_per_tensor_affine(inputs, float(scale), int(zero), 0, 255)
    assert torch.allclose(rounding.round_range(inputs, low, high), expected, atol=1e-5)
    assert rounding.round_range(torch.zeros(1), low, high) == 0


def test_the_gradient_goes_straight_through():
    weight = torch.randn(4, 8, requires_grad=True)
    rounded = rounding.round_groups(weight.detach(), 4, None)
    found = rounding.straight_through(weight, rounded)
    assert torch.allclose(found, rounded)
    (found * torch.arange(32.0).view(4, 8)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(32.0).view(4, 8))
