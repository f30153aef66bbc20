"""What does not go together is refused before anything starts, and what goes together does what it says."""

import pytest
import tiny
import torch
from torch import nn

from hf_compress.errors import ConfigError
from hf_compress.pruning.allocation import SCOPES
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.pruner import Pruner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "platon", "criterion_options": {"beta": 0.5}}, "no option 'beta' .did you mean 'beta.'"),
        (
            {"criterion": "platon", "criterion_options": {"beta1": 1.5}},
            "'beta1' of criterion 'platon' must lie in 0-1",
        ),
        ({"criterion": "platon", "criterion_options": {"beta1": "x"}}, "must be a number, found 'x'"),
        ({"criterion": "random", "criterion_options": {"seed": 0.5}}, "must be a whole number, found 0.5"),
        ({"threshold": 0.1, "criterion": "magnitude"}, "criterion 'magnitude' has no option 'threshold'; it has none"),
        ({"criterion": "threshold", "sparsity": 0.5}, "decides how much goes: leave out sparsity"),
        ({"criterion": "threshold", "scope": "global"}, "decides by itself: leave out scope"),
        ({"criterion": "relative_threshold", "structure": "2:4"}, "needs the same number in each target"),
        ({"criterion": "threshold", "structure": "ffn"}, "needs the same number in each target"),
        ({"criterion": "keep", "regrow": True}, "regrow must be false"),
        ({"scope": "local"}, "unknown scope 'local'.*there are: erk, global, uniform"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Pruner(PruningConfig(**options))


def test_sparsity_is_what_the_structure_says_unless_given():
    assert PruningConfig().final_sparsity == 0.5
    assert PruningConfig(structure="1:4").final_sparsity == 0.75
    assert PruningConfig(structure="1:4", sparsity=0.75).final_sparsity == 0.75
    assert PruningConfig(0.9).final_sparsity == 0.9


@pytest.mark.parametrize(
    ("options", "criterion", "scope"),
    [
        ({}, "platon", "global"),
        ({"criterion": "lamp"}, "lamp", "global"),
        ({"criterion": "magnitude"}, "magnitude", "uniform"),
        ({"scope": "uniform"}, "platon", "uniform"),
        ({"pattern_sparsity": {"attention": 0.3}}, "platon", "uniform"),
        ({"structure": "2:4"}, "platon", "uniform"),
        ({"structure": "ffn"}, "taylor", "uniform"),
        ({"criterion": "keep"}, "keep", "uniform"),
    ],
)
def test_criterion_and_scope_follow_from_what_is_zeroed_unless_given(options, criterion, scope):
    plan = Pruner(PruningConfig(**options)).plan
    assert isinstance(plan.criterion, CRITERIA.get(criterion))
    assert plan.allocate is SCOPES.get(scope)


RISE = {"criterion": "magnitude", "begin": 0.0, "end": 1.0, "frequency": 1, "schedule": "linear"}


def stepped(model, *steps, **options):
    pruner = Pruner(PruningConfig(**{**RISE, **options}))
    pruner.attach(model)
    pruner.start(10)
    for step in steps:
        pruner.step(step)
    return pruner


def test_a_threshold_rises_and_takes_what_lies_below_it():
    for half, final in (((0.005, 0.01)), ((0.01, 0.02))):
        dense = dict(tiny.bert().named_parameters())
        pruner = stepped(tiny.bert(), 5, criterion="threshold", threshold=final)
        assert all(torch.equal(mask, dense[name].abs() >= half) for name, mask in pruner.masks.items())
        pruner.step(10)
        assert all(torch.equal(mask, dense[name].abs() >= final) for name, mask in pruner.masks.items())
        assert pruner.target(10) is None


def test_a_relative_threshold_is_a_multiple_of_the_mean_of_each_weight():
    dense = dict(tiny.bert().named_parameters())
    pruner = stepped(tiny.bert(), 10, criterion="relative_threshold", threshold=0.8)
    for name, mask in pruner.masks.items():
        weight = dense[name].abs()
        assert torch.equal(mask, weight >= 0.8 * weight.mean())


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "rows", "ffn"])
def test_keep_keeps_exactly_the_zeros_that_are_there(structure):
    sparse = tiny.bert()
    made = stepped(sparse, 10, structure=structure, sparsity=0.5)
    masks = made.masks
    kept = stepped(sparse, 0, structure=structure, criterion="keep", begin=0.3)
    assert kept.is_final(0)
    assert kept.sparsity == made.sparsity == 0.5
    assert all(torch.equal(kept.masks[n], m) for n, m in masks.items())
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1)
    kept.step(7)
    kept.check()


@pytest.mark.parametrize("criterion", ["taylor", "movement", "platon", "soft_movement"])
def test_a_criterion_that_learns_from_gradients_waits_for_one(criterion):
    pruner = stepped(tiny.bert(), criterion=criterion)
    assert pruner.ramp.begin == 1
    pruner.step(0)
    assert not pruner.masks


def test_quantized_or_integer_weights_are_refused():
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"float parameters to prune, found weight of torch.int8"):
        Pruner(PruningConfig(include=("weight",))).attach(model)


def test_weights_that_have_diverged_are_refused():
    model = tiny.bert()
    pruner = stepped(model)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        pruner.step(3)


def test_emptying_a_weight_is_said(caplog):
    model = tiny.bert()
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-6)
    stepped(model, 10, sparsity=0.5, scope="global", floor=0.0)
    assert "all of bert.pooler.dense.weight is pruned" in caplog.text


def test_steps_with_infinite_gradients_are_left_out_of_scores():
    model = tiny.bert()
    pruner = stepped(model, criterion="taylor")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    pruner.before_step(1, skip_infinite=True)
    before = {n: kinds["importance"].clone() for n, kinds in pruner.running.items()}
    model.bert.encoder.layer[0].output.dense.weight.grad[0, 0] = torch.inf
    pruner.before_step(2, skip_infinite=True)
    assert all(torch.equal(pruner.running[n]["importance"], t) for n, t in before.items())
