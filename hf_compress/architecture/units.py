"""Units of a layer that are removed together, as entries of parameters: indices, masks, scores.

Level: state. Plain tensors in, new tensors out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class AxisSlice:
    """One dimension of one parameter that an axis reaches.

    Args:
        parameter: full name.
        dim: the dimension that shrinks.
        per_unit: entries of that dimension that belong to one unit, at least 1.
        layer: index in its stack; None outside the layers.
        run: how many of them lie side by side; the runs of one unit lie as far apart as there are units.
        start: where the units begin; what lies before and behind them belongs to none.
        block: how many units lie side by side before entries of others follow; 0: all.
        every: how far apart the first units of two blocks lie.
    """

    parameter: str
    dim: int
    per_unit: int
    layer: int | None
    run: int = 1
    start: int = 0
    block: int = 0
    every: int = 0


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer, e.g. the neurons of one feed-forward block.

    Args:
        layer: index in its stack, from 0.
        name: the module that holds all its parameters.
        count: number of units.
        slices: where the units lie.
        field: the config field that says `count`.
        tie: groups of one model with the same name here must keep the same units; "" if it is free.
        blocks: into how many blocks of equal size the units fall, each of which must keep as many.
        balance: those of `slices` to multiply by the root of the kept share, where the model divides by the root of
            the number of units.
    """

    layer: int
    name: str
    count: int
    slices: tuple[AxisSlice, ...]
    field: str = ""
    tie: str = ""
    blocks: int = 1
    balance: tuple[AxisSlice, ...] = ()


def merge_tied(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Return the groups with those that must keep the same units made one."""
    found: dict[str, UnitGroup] = {}
    for group in groups:
        key = group.tie or group.name
        before = found.get(key)
        found[key] = (
            replace(group, name=key) if before is None else replace(before, slices=(*before.slices, *group.slices))
        )
    return list(found.values())


def entries_of(piece: AxisSlice, size: int) -> torch.Tensor:
    """Return the entries of each of `size` units, LongTensor (runs, units, entries of a run)."""
    if piece.block:
        units = torch.arange(size)
        return (piece.start + units // piece.block * piece.every + units % piece.block).view(1, size, 1)
    # Fused matrices hold whole blocks (all gates, then all ups), so the runs of a unit lie `size` runs apart.
    entries = torch.arange(piece.start, piece.start + piece.per_unit * size)
    return entries.view(piece.per_unit // piece.run, size, piece.run)


def permuted_index(piece: AxisSlice, order: torch.Tensor, length: int) -> torch.Tensor:
    """Return the index that puts unit `order[i]` where unit i was, along a dimension of `length` entries."""
    entries = entries_of(piece, len(order))
    index = torch.arange(length)
    index[entries.flatten()] = entries[:, order].flatten()
    return index


def balanced(values: torch.Tensor, group: UnitGroup, piece: AxisSlice, kept: int) -> torch.Tensor:
    """Return `values` with the entries of `piece` multiplied by the root of the share of units that is kept."""
    index = entries_of(piece, group.count).flatten().to(values.device)
    return values.index_copy(piece.dim, index, values.index_select(piece.dim, index) * (kept / group.count) ** 0.5)


def kept_index(cuts: Iterable[tuple[AxisSlice, torch.Tensor, int]], length: int) -> torch.Tensor:
    """Return the entries of a dimension of `length` that stay, ascending.

    Args:
        cuts: where units lie, which of them stay, and how many there are.
        length: of the dimension; entries that belong to no unit stay.
    """
    keep = torch.ones(length, dtype=torch.bool)
    for piece, units, size in cuts:
        gone = torch.ones(size, dtype=torch.bool)
        gone[units] = False
        keep[entries_of(piece, size)[:, gone].flatten()] = False
    return keep.nonzero().flatten()


def expand_units(
    group: UnitGroup, keep: torch.Tensor, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a mask for each coupled parameter, biases included: True where an entry stays.

    Args:
        group: the units.
        keep: bool, shape (count,).
        parameters: at least the coupled ones, by full name.

    Returns:
        name -> bool tensor of the parameter's shape, on its device.
    """
    masks: dict[str, torch.Tensor] = {}
    gone = (~keep.cpu().bool()).nonzero().flatten()
    for piece in group.slices:
        parameter = parameters[piece.parameter]
        if piece.parameter not in masks:
            masks[piece.parameter] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        entries = entries_of(piece, group.count)[:, gone].flatten().to(parameter.device)
        masks[piece.parameter].index_fill_(piece.dim, entries, False)
    return masks


def unit_scores(group: UnitGroup, elementwise: Mapping[str, torch.Tensor], reduction: str = "norm") -> torch.Tensor:
    """Return one score a unit from those of all its entries, biases included.

    Args:
        group: the units.
        elementwise: a score for each entry of at least the coupled parameters, by full name.
        reduction: "norm", the Euclidean norm; "rms", that over the root of the number of entries; or "mean".

    Returns:
        float32, shape (count,), on the device of the first coupled parameter.
    """
    total = torch.zeros(group.count)
    entries = 0
    for piece in group.slices:
        values = by_unit(piece, group.count, elementwise[piece.parameter]).float()
        total = total.to(values.device) + (values if reduction == "mean" else values.square()).sum(dim=(0, 2))
        entries += values.shape[0] * values.shape[2]
    total = total if reduction == "norm" else total / max(1, entries)
    return total if reduction == "mean" else total.sqrt()


def nonzero_units(group: UnitGroup, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return bool of shape (count,): True where any coupled entry differs from zero.

    Args:
        group: the units.
        parameters: at least the coupled ones, by full name.
    """
    # Not unit_scores() > 0: squares of tiny weights underflow to zero.
    found: torch.Tensor | None = None
    for piece in group.slices:
        alive = (by_unit(piece, group.count, parameters[piece.parameter]) != 0).any(dim=2).any(dim=0)
        found = alive if found is None else found | alive.to(found.device)
    return torch.zeros(group.count, dtype=torch.bool) if found is None else found


def by_unit(piece: AxisSlice, size: int, values: torch.Tensor) -> torch.Tensor:
    """Return `values` as (runs, units, rest): what belongs to each unit."""
    moved = values.detach().movedim(piece.dim, 0)
    runs = piece.per_unit // piece.run
    if piece.block:
        return moved[entries_of(piece, size).flatten().to(moved.device)].reshape(runs, size, -1)
    return moved.narrow(0, piece.start, piece.per_unit * size).reshape(runs, size, -1)
