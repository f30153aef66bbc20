"""Adapters on quantized models: where they start, what they win back, and how they are kept."""

import pytest
import tiny
import torch

from hf_compress import (
    DistillationConfig,
    DistillationTrainer,
    QuantizationConfig,
    merge_recovered,
    quantize,
    recovery_adapter,
)
from hf_compress.errors import ConfigError, OutputExistsError, QuantizationError
from hf_compress.measurement.inputs import dummy_inputs

peft = pytest.importorskip("peft")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
NAME = "model.layers.0.mlp.down_proj"


@pytest.fixture(params=["nf4", "int8"])
def folders(request, tmp_path):
    tiny.llama(**WIDE).save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig(request.param))
    return tmp_path / "source", tmp_path / "quantized"


@torch.no_grad()
def divergence(model, source):
    inputs = dummy_inputs(model, 8)
    plain = type(tiny.llama()).from_pretrained(source).eval()(**inputs).logits.log_softmax(-1)
    other = model.eval()(**inputs).logits.log_softmax(-1)
    return float((plain.exp() * (plain - other)).sum(-1).mean())


def test_it_starts_at_the_singular_vectors_of_the_error(folders):
    source, quantized = folders
    model = recovery_adapter(quantized, source, rank=8)
    layer = model.get_base_model().get_submodule(NAME)
    from hf_compress.quantization.bnb import dequantize

    weight = dict(type(tiny.llama()).from_pretrained(source).named_parameters())[f"{NAME}.weight"]
    error = weight.detach() - dequantize(layer.base_layer).float()
    values = torch.linalg.svdvals(error)
    rest = error - layer.get_delta_weight("default").float()
    # Eckart and Young: no product of this rank leaves less.
    assert float(rest.norm()) == pytest.approx(float(values[8:].norm()), rel=1e-3)
    blank = recovery_adapter(quantized, source, rank=8, initial="zero")
    assert not blank.get_base_model().get_submodule(NAME).get_delta_weight("default").any()
    assert divergence(model, source) < divergence(blank, source)


@pytest.mark.parametrize("folders", ["nf4"], indirect=True)  # 8 bits lose too little to see
@pytest.mark.parametrize("initial", ["zero", "loftq"])
def test_training_wins_back_what_was_lost_as_an_adapter_and_merged(folders, tmp_path, initial):
    source, quantized = folders
    model = recovery_adapter(quantized, source, rank=8, initial=initial)
    before = divergence(model, source)
    trainer = DistillationTrainer(
        model,
        tiny.arguments(tmp_path / "run", max_steps=30, learning_rate=3e-3),
        teacher=str(source),
        distillation=DistillationConfig(task_weight=0.0, logit_weight=1.0),
        train_dataset=tiny.texts(64),
    )
    trainer.train()
    after = divergence(model, source)
    assert after < before
    saved = trainer.save_compressed(tmp_path / "out")
    assert set(saved) == {"adapter"}
    base = type(tiny.llama()).from_pretrained(quantized)
    again = peft.PeftModel.from_pretrained(base, saved["adapter"])
    assert divergence(again, source) == pytest.approx(after, rel=1e-3, abs=1e-7)
    merged = merge_recovered(model, source, tmp_path / "merged", initial=initial)
    plain = type(tiny.llama()).from_pretrained(merged)
    delta = model.get_base_model().get_submodule(NAME).get_delta_weight("default").float()
    moved = (plain.get_submodule(NAME).weight - _weight(source)).detach()
    if initial == "zero":
        assert torch.allclose(moved, delta, atol=1e-6)
    else:
        assert 0 < moved.norm() < delta.norm()
    quantize(merged, tmp_path / "again", QuantizationConfig())
    with pytest.raises(OutputExistsError):
        merge_recovered(model, source, merged)


def _weight(source):
    return type(tiny.llama()).from_pretrained(source).get_submodule(NAME).weight


def test_bad_input_is_refused(folders, tmp_path):
    source, quantized = folders
    with pytest.raises(ConfigError, match="initial must be one of loftq, zero"):
        recovery_adapter(quantized, source, initial="svd")
    with pytest.raises(QuantizationError, match="no layers quantized by bitsandbytes"):
        recovery_adapter(source, source)
    with pytest.raises(QuantizationError, match="is quantized; give the 16- or 32-bit"):
        recovery_adapter(quantized, quantized)
    tiny.llama(**{**WIDE, "intermediate_size": 64}).save_pretrained(tmp_path / "other")
    with pytest.raises(QuantizationError, match="not what this model was quantized from"):
        recovery_adapter(quantized, tmp_path / "other")
