"""Fits what reads the units that are left, one matrix after the other, so that each sees what those before it make.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.units import UnitGroup
from hf_compress.pruning.oneshot.repair import Regression
from hf_compress.pruning.oneshot.taps import Batch, evaluating, on_device, taps_of


@torch.no_grad()
def refit(
    full: nn.Module, smaller: nn.Module, batches: Sequence[Batch], kept: Mapping[UnitGroup, torch.Tensor], ridge: float
) -> None:
    """Fit every matrix of `smaller` that reads units anew, in the order in which they are used.

    Args:
        full: the model before.
        smaller: the model after, changed in place.
        batches: inputs; what each matrix made of all units there is what it shall make of those that are left.
        kept: the groups of units that were cut.
        ridge: strength of the draw towards the weights of now, above 0.
    """
    readers = {tap.module: None for each in taps_of(full, list(kept)).values() for tap in each}
    names = {module: name for name, module in full.named_modules()}
    with evaluating(full), evaluating(smaller):
        for module in _in_order(full, batches[0], list(readers)):
            other = smaller.get_submodule(names[module])
            weight = other.weight if isinstance(other, nn.Linear) else other.weight.T
            regression = Regression(weight.shape[1], weight.shape[0])
            for batch in on_device(full, batches):
                made, given = _passed(full, module, batch)[1], _passed(smaller, other, batch)[0]
                valid = _valid(batch, made)
                regression.add(given[valid], made[valid])
            new, bias = regression.solve(weight, other.bias, ridge)
            other.weight.copy_(new if isinstance(other, nn.Linear) else new.T)
            if bias is not None:
                other.bias.copy_(bias)


def _valid(batch: Batch, made: torch.Tensor) -> torch.Tensor:
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == made.shape[:-1]:
        return mask.bool()
    return torch.ones(made.shape[:-1], dtype=torch.bool, device=made.device)


class _Reached(Exception):
    """Ends a forward pass."""


def _passed(model: nn.Module, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `module` is given and what it makes; the pass ends there."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        found.append((args[0], output))
        raise _Reached

    handle = module.register_forward_hook(look)
    try:
        with contextlib.suppress(_Reached):
            model(**batch)
    finally:
        handle.remove()
    return found[0]


def _in_order(model: nn.Module, batch: Batch, modules: Sequence[nn.Module]) -> list[nn.Module]:
    order: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda module, *_: order.append(module)) for m in modules]
    try:
        model(**next(on_device(model, [batch])))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))
