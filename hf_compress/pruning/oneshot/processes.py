"""Several processes that prune one model together, each with calibration data of its own.

Level: state.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist


@contextlib.contextmanager
def launched() -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun or accelerate has started, if any, inside; gives rank and number."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if _are_several() else (0, 1)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), size
    finally:
        dist.destroy_process_group()


def process_rank() -> int:
    """Return the number of this process, 0 if it is alone."""
    return dist.get_rank() if _are_several() else 0


def wait_for_all() -> None:
    """Wait until every process is here."""
    if _are_several():
        dist.barrier()


def adder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what sums a tensor over the processes; None if there is one."""
    if not _are_several():
        return None

    def add(values: torch.Tensor) -> torch.Tensor:
        # NCCL adds up what lies on its GPU only.
        place = torch.device("cuda") if dist.get_backend() == "nccl" else values.device
        summed = values.to(place, copy=True)
        dist.all_reduce(summed)
        return summed.to(values.device)

    return add


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
