"""What a criterion of importance is; `criteria` has them.

Level: maths. A criterion that learns from gradients keeps running tensors, shaped like it, in a `state` that
belongs to the caller. All work on a part of a weight as on the whole, except where `needs_whole` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import torch

State = MutableMapping[str, torch.Tensor]
# Temporaries of this many entries stay in the cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where the entries of a tensor stand among all that compete.

    Args:
        index: number of the parameter, from 0.
        first: index of the tensor's first entry in its flattened parameter; above 0 on shards.
    """

    index: int = 0
    first: int = 0


@dataclass(frozen=True)
class Moment:
    """When a gradient is seen.

    Args:
        step: number of the optimizer step, from 1.
        share: how far the schedule has come, 0-1.
        total: entries of all parameters together.
    """

    step: int = 1
    share: float = 1.0
    total: int = 1


@dataclass(frozen=True)
class Criterion:
    """What every criterion has; `scores` is the only method that each must define."""

    # Names of the running tensors; not empty means that gradients are needed.
    running: ClassVar[tuple[str, ...]] = ()
    # How the scores of a unit's entries become one: see `units.reduce_units`.
    reduction: ClassVar[str] = "mean"
    # Whether the score of an entry depends on others of its parameter.
    needs_whole: ClassVar[bool] = False
    # Whether scores of different parameters compare, so that single weights are in one ranking unless told otherwise.
    comparable: ClassVar[bool] = False
    # Whether a threshold decides how many go, and not a sparsity.
    decides: ClassVar[bool] = False
    # Whether the mask is made once, before the first step.
    at_start: ClassVar[bool] = False

    def observe_(self, weight: torch.Tensor, gradient: torch.Tensor, state: State, moment: Moment) -> None:
        """Take one step's gradient into `state`, in place.

        Args:
            weight: float tensor, before the optimizer step; straight-through values where it is masked.
            gradient: of the loss, same shape.
            state: the running tensors, float32, contiguous, zero at first.
            moment: when this is.
        """

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
        """Return the importance of each entry, float32, shaped like `weight`."""
        raise NotImplementedError

    def cut(self, scores: torch.Tensor, share: float) -> torch.Tensor | float:
        """Return the score below which units go, if the criterion decides how many."""
        raise NotImplementedError


def chunks(*tensors: torch.Tensor) -> zip[tuple[torch.Tensor, ...]]:
    """Return views of equal, cache-sized parts of contiguous tensors of one size, in step."""
    # On an accelerator a launch costs more than memory.
    size = _CHUNK if tensors[0].device.type == "cpu" else max(1, tensors[0].numel())
    return zip(*(t.detach().reshape(-1).split(size) for t in tensors), strict=True)
