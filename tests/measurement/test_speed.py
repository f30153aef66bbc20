import statistics

import pytest
import tiny
import torch

from hf_compress.errors import ConfigError, UnsupportedError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.measurement.speed import measure_latency


def test_all_models_take_turns_and_values_follow_from_the_samples():
    models = {"bert": tiny.bert().train(), "vit": tiny.vit()}
    before = torch.random.get_rng_state(), {n: p.clone() for n, p in models["bert"].named_parameters()}
    found = measure_latency(models, batch_sizes=(1, 4), warmup=1, rounds=5, seconds=0.0)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert models["bert"].training
    assert all(torch.equal(p, before[1][n]) and p.grad is None for n, p in models["bert"].named_parameters())
    for name in models:
        rows = zip(found[name][::3], found[name][1::3], found[name][2::3], strict=True)
        for batch_size, (latency, throughput, macs) in zip((1, 4), rows, strict=True):
            assert macs.value == batch_size * found[name][2].value > 0
            assert len(latency.samples) == 5
            assert latency.value == statistics.median(latency.samples)
            assert throughput.value == pytest.approx(batch_size * 1000 / latency.value)
            expected = {"batch_size": batch_size, "device": "cpu", "dtype": "float32", "threads": 1, "warmup": 1}
            assert expected.items() <= latency.conditions.items()


def test_a_model_that_does_more_work_is_slower():
    models = {"one": tiny.bert(num_hidden_layers=1), "eight": tiny.bert(num_hidden_layers=8)}
    found = measure_latency(models, batch_sizes=(4,), rounds=7, seconds=0.0)
    assert min(found["one"][0].samples) < min(found["eight"][0].samples)


@pytest.mark.parametrize("make", [tiny.bert, tiny.vit, tiny.llama, tiny.t5], ids=["bert", "vit", "llama", "t5"])
def test_dummy_inputs_are_accepted_repeatable_and_never_too_long(make):
    model = make().eval()
    state = torch.random.get_rng_state()
    one, other = (dummy_inputs(model, batch_size=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[k], other[k]) for k in one)
    with torch.no_grad():
        assert len(model(**one)[0]) == 3


def test_impossible_inputs_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        dummy_inputs(tiny.bert(), batch_size=0)
    with pytest.raises(UnsupportedError, match="inputs of your own"):
        dummy_inputs(torch.nn.Linear(2, 2), batch_size=1)


def test_an_error_while_timing_leaves_every_part_in_its_mode():
    model = tiny.bert().train()
    model.bert.embeddings.eval()
    modes = [part.training for part in model.modules()]
    with pytest.raises(ValueError, match="input_ids"):
        measure_latency({"bert": model}, lambda model, batch_size: {"no_such_input": torch.ones(1)})
    assert [part.training for part in model.modules()] == modes
