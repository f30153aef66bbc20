"""Parameters of which each process holds some rows: DTensors, as FSDP2 makes them.

Level: state. Pruning works on the part that is here; what must be known of the whole is added up over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hf_compress.errors import UnsupportedError
from hf_compress.pruning.select import OneRank, Ranks


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of `tensor` that this process holds, sharing its memory; all of it if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Say whether `tensor` is a DTensor."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


class Shards:
    """The processes that hold the rows of the same parameters."""

    def __init__(self, parameter: Any) -> None:
        mesh = parameter.device_mesh
        dims = [i for i, p in enumerate(parameter.placements) if p.is_shard(0)]
        others = [p for i, p in enumerate(parameter.placements) if i not in dims]
        if len(dims) != 1 or not all(p.is_replicate() for p in others):
            raise UnsupportedError(
                f"pruning handles DTensors that are cut along their first dimension (FSDP2), found "
                f"{parameter.placements}; train without tensor parallelism"
            )
        self.group = mesh.get_group(dims[0])
        self.rank = mesh.get_local_rank(dims[0])
        self.world = mesh.size(dims[0])
        self.device = mesh.device_type

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over the processes, where `values` was."""
        import torch.distributed

        moved = values.to(self.device)
        moved = moved.clone() if moved is values else moved
        torch.distributed.all_reduce(moved, group=self.group)
        return moved.to(values.device)

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` of all processes, shape (processes, *values.shape)."""
        import torch.distributed

        moved = values.to(self.device).contiguous()
        parts = [torch.empty_like(moved) for _ in range(self.world)]
        torch.distributed.all_gather(parts, moved, group=self.group)
        return torch.stack(parts).to(values.device)

    def rows(self, parameter: torch.Tensor) -> tuple[int, int]:
        """Return the first row of `parameter` that is here, and the one after the last."""
        # As torch.chunk cuts.
        each = -(-parameter.shape[0] // self.world)
        first = min(self.rank * each, parameter.shape[0])
        return first, min(first + each, parameter.shape[0])


def ranks_of(parameters: Iterable[torch.Tensor]) -> Ranks:
    """Return how the processes that hold `parameters` add up.

    Raises:
        UnsupportedError: if some are sharded and others not, or in a way that is not handled.
    """
    parameters = list(parameters)
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded:
        return OneRank()
    if len(sharded) < len(parameters):
        raise UnsupportedError(
            f"{len(sharded)} of {len(parameters)} parameters to prune are sharded and the others are not; apply "
            "fully_shard to the whole model"
        )
    return Shards(sharded[0])


def first_entry(parameter: torch.Tensor) -> int:
    """Return the index in the flattened `parameter` of the first entry that is here."""
    if not is_sharded(parameter):
        return 0
    return Shards(parameter).rows(parameter)[0] * (parameter.numel() // max(1, parameter.shape[0]))


def gather(part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor shaped like `parameter`, of which each process holds `part`; all must call it."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    # Not every backend sends bools.
    sent = part.to(torch.uint8) if part.dtype == torch.bool else part
    mesh, placements = parameter.device_mesh, parameter.placements
    whole = DTensor.from_local(
        sent, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    ).full_tensor()
    return whole.to(part.dtype)


def scatter(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of `whole`, shaped like `parameter`, that belongs here."""
    if not is_sharded(parameter):
        return whole
    first, last = Shards(parameter).rows(parameter)
    return whole[first:last].contiguous()
