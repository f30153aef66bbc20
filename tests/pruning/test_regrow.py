"""Straight-through regrowth against a reference that keeps dense weights and multiplies by the mask in the forward."""

import pytest
import torch
from torch import nn

from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.criterion import Moment, Place
from hf_compress.pruning.pruner import Pruner
from hf_compress.pruning.select import keep_largest

STEPS = 12


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(STEPS)
    ]


def optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


class Masked(nn.Module):
    """The net with weight * mask in the forward pass and the gradient handed straight through to the weight."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.masks = {n: torch.ones_like(p) for n, p in self.net.named_parameters() if "weight" in n}

    def forward(self, x):
        effective = {
            n: p + (p.detach() * self.masks[n] - p.detach()) if n in self.masks else p
            for n, p in self.net.named_parameters()
        }
        return torch.func.functional_call(self.net, effective, x)


@pytest.mark.parametrize("criterion", ["movement", "magnitude", "platon", "taylor"])
def test_equals_straight_through_autograd_step_by_step(criterion):
    config = PruningConfig(
        0.7, criterion=criterion, scope="global", regrow=True, begin=0.1, end=0.8, frequency=2, include=("weight",)
    )
    model, reference, score = net(), Masked(), CRITERIA.get(criterion)()
    pruner = Pruner(config)
    pruner.attach(model)
    pruner.start(STEPS)
    states = {n: {k: torch.zeros_like(m) for k in score.running} for n, m in reference.masks.items()}
    mine, theirs = optimizer(model.parameters()), optimizer(reference.net.parameters())
    returned = 0
    for step, (x, y) in enumerate(batches(), 1):
        for module, optim in ((model, mine), (reference, theirs)):
            optim.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
        dense = dict(reference.net.named_parameters())
        if step <= pruner.ramp.end:
            for n, state in states.items():
                score.observe_(dense[n], dense[n].grad, state, Moment(step))
        pruner.before_step(step)
        mine.step()
        theirs.step()
        pruner.step(step, mine)
        if pruner.ramp.is_due(step):
            scores = [score.scores(dense[n], states[n], Place()) for n in states]
            total = sum(s.numel() for s in scores)
            kept = keep_largest(scores, round(pruner.ramp(step) * total))
            for (n, old), new in zip(list(reference.masks.items()), kept, strict=True):
                returned += int(((old == 0) & new).sum())
                reference.masks[n] = new.float()
        for n, parameter in model.named_parameters():
            expected = dense[n] * reference.masks[n] if n in reference.masks else dense[n]
            torch.testing.assert_close(parameter, expected, rtol=0, atol=0)
    assert returned > 0
    assert pruner.sparsity == pytest.approx(0.7, abs=0.005)


def test_without_regrowth_nothing_returns_and_moments_of_pruned_entries_are_cleared():
    model = net()
    pruner = Pruner(PruningConfig(0.7, begin=0.0, end=0.8, frequency=2, include=("weight",)))
    pruner.attach(model)
    pruner.start(STEPS)
    adam = optimizer(model.parameters())
    gone = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters() if "weight" in n}
    for step, (x, y) in enumerate(batches(), 1):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        pruner.before_step(step)
        adam.step()
        pruner.step(step, adam)
        for n, parameter in model.named_parameters():
            if n not in gone or not pruner.pruned:
                continue
            mask = pruner.masks[n]
            assert not (mask & gone[n]).any()
            gone[n] = ~mask
            if pruner.ramp.is_due(step):
                for kind in ("exp_avg", "exp_avg_sq"):
                    assert not adam.state[parameter][kind][~mask].any()
                    assert adam.state[parameter][kind][mask].all()


def test_memory_of_the_state_is_what_is_promised():
    """One byte a weight without regrowth; with it four, which is less than one and four a pruned weight at 80 %."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 2))
    for regrow, limit in ((False, 10_000), (True, 10_000 + 4 * 8_000)):
        pruner = Pruner(PruningConfig(0.8, begin=0.0, end=0.0, regrow=regrow))
        pruner.attach(model)
        pruner.start(10)
        pruner.step(0)
        held = pruner.store.values if regrow else pruner.store.masks
        assert sum(t.numel() * t.element_size() for t in held.values()) <= limit
