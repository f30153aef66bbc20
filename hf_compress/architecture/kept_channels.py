"""What stays of channels that go through a whole model: turns the options of `shrink` into indices, or refuses them.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_compress.architecture.anatomy import Axis
from hf_compress.architecture.kept import (
    Amount,
    by_axis,
    check_indices,
    check_number,
    checked_width,
    nearest_legal,
    strongest,
)
from hf_compress.architecture.units import nonzero_units, unit_scores
from hf_compress.errors import ArchitectureError


def choose_channels(
    option: str, axes: Sequence[Axis], amount: Amount, parameters: Mapping[str, torch.Tensor], multiple: int = 1
) -> dict[Axis, list[torch.Tensor]]:
    """Return the kept units of each group of each axis, where all groups shrink with the first.

    Args:
        option: "hidden", "filters" or "ffn", for messages.
        axes: whose channels may go.
        amount: as in `shrink`; of a list the other groups follow by number.
        parameters: of the model, by full name.
        multiple: what a fraction is rounded to.

    Raises:
        ArchitectureError: if there is no such axis, or the number or a channel is illegal.
    """
    if amount is None:
        return {axis: _alive_channels(option, axis, parameters) for axis in axes}
    chosen: dict[Axis, list[torch.Tensor]] = {}
    for axis, value in by_axis(option, list(axes), amount).items():
        first = None
        if isinstance(value, float):
            value = nearest_legal(axis, checked_width(option, value, axis.size), multiple)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            first = torch.tensor(check_indices(option, axis, torch.as_tensor(value).tolist()))
            value = len(first)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArchitectureError(
                f"{option}: expected a whole number from 1 to {axis.size}, a fraction or a list of channels, found "
                f"{value!r}"
            )
        check_number(option, axis, value)
        chosen[axis] = _channels(axis, value, [unit_scores(group, parameters) for group in axis.groups], first)
    return chosen


def _channels(
    axis: Axis, size: int, scores: Sequence[torch.Tensor], first: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Return the strongest units of each group when `size` of the first stay."""
    found = []
    for group, number, each in zip(axis.groups, axis.counts(size), scores, strict=True):
        blocks = each.view(group.blocks, -1)
        kept = [strongest(block, number // group.blocks) + i * blocks.shape[1] for i, block in enumerate(blocks)]
        found.append(torch.cat(kept))
    return found if first is None else [first, *found[1:]]


def _alive_channels(option: str, axis: Axis, parameters: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return what is left without the channels that are zero everywhere; all if none is."""
    alive = [nonzero_units(group, parameters).cpu().float() for group in axis.groups]
    needed = [int(each.view(group.blocks, -1).sum(1).max()) for group, each in zip(axis.groups, alive, strict=True)]
    sizes = [
        size
        for size in axis.legal or range(1, axis.size + 1)
        if all(n // g.blocks >= least for g, n, least in zip(axis.groups, axis.counts(size), needed, strict=True))
    ]
    return _channels(axis, min(sizes, default=axis.size), alive)
