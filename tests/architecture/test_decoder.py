"""Batches of sequence-to-sequence models, as a collator makes them, go without labels where those are not wanted."""

import pytest
import torch
from architectures import build

from hf_compress import OneShotConfig, prune_oneshot, quantization_sensitivity
from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.verify import made_up


def batch_for(model):
    names = ("attention_mask", "input_features", "input_ids")
    inputs = {name: value for name, value in made_up(model)[0].items() if name in names}
    labels = torch.randint(5, 30, (len(inputs.get("input_ids", inputs.get("input_features"))), 6))
    labels[0, 4:] = -100
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("name", ["t5", "bart", "pegasus", "whisper"])
def test_logits_without_labels_are_those_with_them(name):
    model = build(name).eval()
    batch = batch_for(model)
    inputs = without_labels(model, batch)
    assert "labels" not in inputs
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**batch).logits)
    assert without_labels(model, inputs) == inputs


def test_without_any_a_decoder_reads_what_the_encoder_reads():
    model = build("bart").eval()
    inputs = {name: value for name, value in batch_for(model).items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(model(**without_labels(model, inputs)).logits, model(**inputs).logits)


@pytest.mark.parametrize("has_labels", [True, False])
def test_weights_units_and_sensitivities_are_found_on_them(has_labels):
    model = build("t5")
    batch = batch_for(model)
    batch = batch if has_labels else {name: value for name, value in batch.items() if name != "labels"}
    pruned = prune_oneshot(model, OneShotConfig(sparsity=0.5), [batch])
    query = pruned.get_parameter("encoder.block.0.layer.0.SelfAttention.q.weight")
    assert float((query == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert prune_oneshot(model, OneShotConfig(keep={"ffn": 0.5}), [batch]).config.d_ff == model.config.d_ff // 2
    assert all(value > 0 for value in quantization_sensitivity(model, [batch]).values())
