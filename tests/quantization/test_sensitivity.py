"""Which layer hurts most when it alone is quantized, and what a budget leaves alone."""

import pytest
import tiny
import torch

from hf_compress import QuantizationConfig, mixed_precision, quantization_sensitivity, quantize
from hf_compress.errors import DataError, QuantizationError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.quantization.rounding import NF4, round_blocks

WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama])
def test_it_is_the_divergence_that_one_rounded_weight_makes(make):
    model = make(**WIDE).eval()
    batches = [dummy_inputs(model, 2, seed=s) for s in range(2)]
    batches[0]["attention_mask"][0, -3:] = 0
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = quantization_sensitivity(model, batches, QuantizationConfig("nf4"))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert not {"classifier", "lm_head"} & set(found)
    name = list(found)[1]
    with torch.no_grad():
        plain = [model(**b).logits for b in batches]
        layer = model.get_submodule(name)
        layer.weight.copy_(round_blocks(layer.weight, NF4))
        rounded = [model(**b).logits for b in batches]
    each = []
    for batch, p, q in zip(batches, plain, rounded, strict=True):
        kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
        each.append(kl[batch["attention_mask"].bool()] if kl.dim() == 2 else kl)
    assert found[name] == pytest.approx(float(torch.cat(each).mean()), rel=1e-3)


def test_a_budget_leaves_the_worst_for_their_size_alone_and_is_kept(tmp_path):
    model = tiny.bert(**WIDE).eval()
    model.save_pretrained(tmp_path / "source")
    config = QuantizationConfig("nf4")
    found = quantization_sensitivity(model, [dummy_inputs(model, 4)], config)
    whole = sum(p.numel() * 4 for p in model.parameters())
    everything = mixed_precision(model, found, whole, config)
    # Where nothing moves there is nothing to win.
    assert set(everything.skip_modules) == {name for name, value in found.items() if value > 0}
    half = mixed_precision(model, found, whole // 2, config)
    assert 0 < len(half.skip_modules) < len(found)
    # Layers of one size: the most sensitive of them stay.
    square = [n for n in found if model.get_submodule(n).weight.shape == (64, 64)]
    left = [n for n in square if n in half.skip_modules]
    assert left == square[: len(left)]
    quantize(tmp_path / "source", tmp_path / "mixed", half)
    stored = (tmp_path / "mixed" / "model.safetensors").stat().st_size
    assert stored < whole // 2 + 30_000  # names and codebooks
    with pytest.raises(QuantizationError, match="more than 1,000"):
        mixed_precision(model, found, 1000, config)


def test_bad_input_is_refused():
    model = tiny.bert(**WIDE)
    with pytest.raises(DataError, match="at least one batch"):
        quantization_sensitivity(model, [])
    with pytest.raises(QuantizationError, match="cannot be simulated"):
        quantization_sensitivity(model, [dummy_inputs(model, 1)], QuantizationConfig("gptq"))
    with pytest.raises(QuantizationError, match="no logits"):
        quantization_sensitivity(model.bert, [dummy_inputs(model, 1)])
