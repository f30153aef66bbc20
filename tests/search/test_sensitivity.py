"""Each part changed alone: what it does to the predictions, by naive copies, and zeros shared out by it."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import tiny
import torch

from hf_compress import sensitivity, share_out
from hf_compress.errors import ConfigError, DataError, QuantizationError, RecordError
from hf_compress.search.sensitivity import Sensitivity
from hf_compress.search.sensitivity_report import plot_sensitivity, sensitivity_table

LEVELS = (0.5, 0.75)


def batches(make=tiny.bert):
    rows = tiny.sentences(16) if make is tiny.bert else tiny.texts(16)
    return [{k: torch.stack([row[k] for row in rows[i : i + 8]]) for k in rows[0]} for i in (0, 8)]


@pytest.fixture(scope="module")
def found():
    # Large weights, so that predictions depend on them by more than rounding.
    model = tiny.bert(hidden_size=64, intermediate_size=128, initializer_range=0.3)
    before = copy.deepcopy(model.state_dict())
    result = sensitivity(model, batches(), levels=LEVELS)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return model, result


def divergence(model, other):
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches():
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            for p, q in zip(
                model.eval()(**inputs).logits.softmax(-1), other.eval()(**inputs).logits.softmax(-1), strict=True
            ):
                total, count = total + float((p * (p / q).log()).sum()), count + 1
    return total / count


def test_weights_are_those_of_a_copy_without_its_smallest_entries(found):
    model, result = found
    name = "bert.encoder.layer.1.output.dense.weight"
    for level in LEVELS:
        other = copy.deepcopy(model)
        weight = other.get_parameter(name).data
        limit = weight.abs().flatten().sort().values[round(level * weight.numel())]
        weight[weight.abs() < limit] = 0
        one = next(s for s in result if (s.kind, s.part, s.level) == ("weights", name, level))
        assert one.loss == pytest.approx(divergence(model, other), rel=1e-3, abs=1e-7)
        assert one.size == weight.numel()


def test_units_are_those_of_a_copy_without_its_weakest_neurons(found):
    model, result = found
    other = copy.deepcopy(model)
    layer = other.bert.encoder.layer[0]
    with torch.no_grad():
        squares = layer.intermediate.dense.weight.square().sum(1) + layer.intermediate.dense.bias.square()
        weakest = (squares + layer.output.dense.weight.square().sum(0)).argsort()[:64]
        for tensor in (layer.intermediate.dense.weight, layer.intermediate.dense.bias, layer.output.dense.weight.T):
            tensor[weakest] = 0
    one = next(s for s in result if s.kind == "ffn" and s.part.endswith(".0") and s.level == 0.5)
    assert one.loss == pytest.approx(divergence(model, other), rel=1e-3, abs=1e-7)


def test_every_kind_and_part_is_there_once(found):
    _, result = found
    kinds = {kind: sum(s.kind == kind for s in result) for kind in ("weights", "ffn", "heads", "layers", "quantized")}
    # 6 matrices a layer in 2 layers; the pooler is not of the blocks but a target and a linear layer.
    assert kinds == {"weights": 26, "ffn": 4, "heads": 4, "layers": 2, "quantized": 26}
    assert len({(s.kind, s.part, s.level) for s in result}) == len(result)
    assert all(s.loss >= -1e-9 for s in result)


def test_kinds_that_a_model_lacks_are_left_out_and_language_models_work():
    result = sensitivity(tiny.llama(), batches(tiny.llama), kinds=("ffn", "layers"), levels=(0.5,))
    assert {s.kind for s in result} == {"ffn", "layers"}


def test_an_interrupted_run_goes_on_and_another_model_is_refused(tmp_path, monkeypatch):
    model, seen = tiny.bert(), []
    place = tmp_path / "sensitivity.json"
    options = {"kinds": ("weights",), "levels": (0.5,), "output": place}
    whole = sensitivity(model, batches(), **options)
    data = json.loads(place.read_text())
    place.write_text(json.dumps({**data, "results": data["results"][:5]}))
    monkeypatch.setattr("hf_compress.search.sensitivity.say", seen.append)
    again = sensitivity(model, batches(), **options)
    assert len(seen) == len(whole) - 5
    assert [(s.part, pytest.approx(s.loss, abs=1e-7)) for s in again] == [(s.part, s.loss) for s in whole]
    with pytest.raises(ConfigError, match="another model"):
        sensitivity(tiny.bert(1), batches(), **options)
    place.write_text("{}")
    with pytest.raises(ConfigError, match="holds no results"):
        sensitivity(model, batches(), **options)


def test_zeros_are_shared_out_as_the_best_of_all_ways_that_the_greedy_steps_can_reach():
    """With equal sizes and losses that grow ever faster the greedy way is the best one."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(4, generator=generator).tolist()
    levels = (0.25, 0.5, 0.75)
    found = [Sensitivity("weights", f"w{i}", n, c * n**2, 100) for i, c in enumerate(scales) for n in levels]
    chosen = share_out(found, 0.5)
    cost = sum(c * chosen[f"^w{i}$"] ** 2 for i, c in enumerate(scales))
    ways = [w for w in itertools.product((0, *levels), repeat=4) if sum(w) == 2.0]
    assert sum(chosen.values()) == 2.0
    assert cost == pytest.approx(min(sum(c * n**2 for c, n in zip(scales, w, strict=True)) for w in ways))


def test_what_is_shared_out_prunes_so_much(found):
    from hf_compress import OneShotConfig, prune_oneshot

    model, result = found
    # What stands outside of the blocks stays dense there.
    shares = share_out([s for s in result if "layer." in s.part], 0.6)
    config = OneShotConfig(sparsity=0.5, criterion="magnitude", pattern_sparsity=shares)
    pruned = prune_oneshot(copy.deepcopy(model), config, batches())
    weights = [p for n, p in pruned.named_parameters() if n in {s.part for s in result if "layer." in s.part}]
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert 0.6 <= share < 0.65


def test_table_and_picture_show_every_number(found):
    _, result = found
    text = sensitivity_table(result)
    assert text.count("\n") == 1 + len({(s.kind, s.part) for s in result})
    axes = plot_sensitivity(result)
    assert len(axes.texts) == len(result)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["-", "0", "1"]
    with pytest.raises(RecordError, match="no sensitivities"):
        plot_sensitivity([])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": ("neurons",)}, ConfigError, "neurons"),
        ({"levels": (0.5, 1.0)}, ConfigError, "below 1"),
        ({"schemes": ("gptq",)}, QuantizationError, "cannot be simulated"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sensitivity(tiny.bert(), batches(), **options)
    with pytest.raises(DataError, match="at least one batch"):
        sensitivity(tiny.bert(), [])


def test_nothing_or_too_little_to_share_out_is_refused():
    with pytest.raises(ConfigError, match="no results of the kind"):
        share_out([], 0.5)
    with pytest.raises(ConfigError, match="reach no sparsity of 0.9"):
        share_out([Sensitivity("weights", "w", 0.5, 1.0, 10)], 0.9)
