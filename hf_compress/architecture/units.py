"""Units of a layer that are removed together, as entries of parameters: indices, masks, scores.

Level: state. Plain tensors in, new tensors out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AxisSlice:
    """One dimension of one parameter that an axis reaches.

    Args:
        parameter: full name.
        dim: the dimension that shrinks.
        per_unit: entries of that dimension that belong to one unit, at least 1.
        layer: index in its stack; None outside the layers.
    """

    parameter: str
    dim: int
    per_unit: int
    layer: int | None


@dataclass(frozen=True)
class UnitGroup:
    """The units of one layer, e.g. the neurons of one feed-forward block.

    Args:
        layer: index in its stack, from 0.
        name: the module that holds all its parameters.
        count: number of units.
        slices: where the units lie; each parameter appears once.
        field: the config field that says `count`.
    """

    layer: int
    name: str
    count: int
    slices: tuple[AxisSlice, ...]
    field: str = ""


def unit_index(piece: AxisSlice, units: torch.Tensor, size: int) -> torch.Tensor:
    """Return the entries of the dimension `piece.dim` that belong to `units`.

    Args:
        piece: where the units lie.
        units: indices of units, 0 to `size` - 1, in the order in which they shall stay.
        size: number of units before removal.

    Returns:
        LongTensor of `len(units) * piece.per_unit` entries.
    """
    # Fused matrices hold whole blocks (all gates, then all ups), so a unit's entries lie `size` apart.
    return torch.cat([units.long() + block * size for block in range(piece.per_unit)])


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
    masks = {}
    for piece in group.slices:
        parameter = parameters[piece.parameter]
        entries = keep.to(device=parameter.device, dtype=torch.bool).repeat(piece.per_unit)
        shape = [1] * parameter.dim()
        shape[piece.dim] = -1
        masks[piece.parameter] = entries.view(shape).expand(parameter.shape).contiguous()
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
    """Return `values` as (per_unit, size, rest), the units in the middle."""
    return values.detach().movedim(piece.dim, 0).reshape(piece.per_unit, size, -1)
