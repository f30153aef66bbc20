"""Fits what reads the units that are left, one matrix after the other, so that each sees what those before it make.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_compress.architecture.modes import outside_training
from hf_compress.architecture.units import UnitGroup
from hf_compress.pruning.oneshot.repair import Regression
from hf_compress.pruning.oneshot.taps import Batch, on_device, taps_of


@torch.no_grad()
def refit(
    full: nn.Module, smaller: nn.Module, batches: Sequence[Batch], kept: Mapping[UnitGroup, torch.Tensor], ridge: float
) -> None:
    """Fit every matrix of `smaller` that reads units anew, in the order in which they are used.

    Args:
        full: the model before.
        smaller: the model after, changed in place.
        batches: inputs; the sum that each matrix adds to shall become what it was with all units, also where
            matrices before it have changed it.
        kept: the groups of units that were cut.
        ridge: strength of the draw towards the weights of now, above 0.

    Source: Kwon et al. 2022, section 4.3 (mask tuning), for whole matrices instead of one factor a unit.
    """
    readers = {tap.module: None for each in taps_of(full, list(kept)).values() for tap in each}
    names = {module: name for name, module in full.named_modules()}
    with outside_training(full), outside_training(smaller):
        for module in _in_order(full, batches[0], list(readers)):
            other = smaller.get_submodule(names[module])
            weight = other.weight if isinstance(other, nn.Linear) else other.weight.T
            regression = Regression(weight.shape[1], weight.shape[0])
            for batch in on_device(full, batches):
                _, made, stream = _passed(full, module, batch)
                given, _, other_stream = _passed(smaller, other, batch)
                if stream is not None and other_stream is not None:
                    # What it is added to has errors by now, which it can make good.
                    made = made + (stream - other_stream)
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


class _Adding(TorchFunctionMode):
    """Ends a pass where what a module has made is added to something of the same shape, which is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.made: torch.Tensor | None = None
        self.stream: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.made is not None and func in _ADD and len(args) > 1 and any(a is self.made for a in args[:2]):
            other = args[1] if args[0] is self.made else args[0]
            if isinstance(other, torch.Tensor) and other.shape == self.made.shape:
                self.stream = other
            raise _Reached
        return func(*args, **(kwargs or {}))


_ADD = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)


def _passed(
    model: nn.Module, module: nn.Module, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return what `module` is given, what it makes and what that is added to, if it is; the pass ends there."""
    adding = _Adding()
    found: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        found.append(args[0])
        adding.made = output

    handle = module.register_forward_hook(look)
    try:
        with contextlib.suppress(_Reached), adding:
            model(**batch)
    finally:
        handle.remove()
    return found[0], adding.made, adding.stream


def _in_order(model: nn.Module, batch: Batch, modules: Sequence[nn.Module]) -> list[nn.Module]:
    order: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda module, *_: order.append(module)) for m in modules]
    try:
        model(**next(on_device(model, [batch])))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))
