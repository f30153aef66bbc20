"""How a micro-batch's loss is scaled, so that any split of a batch into micro-batches gives the same gradient.

Level: glue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_compress.distillation.reduce import valid_positions


class LossScale:
    """Counts what a batch's loss is divided by: samples or tokens over all its micro-batches and ranks.

    Args:
        alignment: "rows", "tokens" or "causal"; see `distillation.reduce`.
    """

    def __init__(self, alignment: str) -> None:
        self.alignment = alignment
        self._items: torch.Tensor | None = None
        self._world = 1

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how many samples or tokens of `batch` count, 0-D."""
        tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
        return valid_positions(tensors, self.alignment).sum()

    def collect(self, batches: Sequence[Mapping[str, Any]], device: torch.device, accelerator: Any = None) -> None:
        """Count the micro-batches of the next optimizer step.

        Args:
            batches: all of this rank.
            device: of the loss.
            accelerator: adds up over its processes; None if each rank divides by its own count.
        """
        if not batches:
            return
        self._items = torch.stack([self.count(batch) for batch in batches]).sum().to(device)
        if accelerator is not None:
            self._items = accelerator.gather(self._items[None]).sum()
            # Averaging gradients over ranks divides by their number once more.
            self._world = accelerator.num_processes

    def share(self, local: torch.Tensor) -> torch.Tensor:
        """Return the factor that turns the mean over `local` items into their part of the whole batch's mean."""
        items = local if self._items is None else self._items
        return local * self._world / items.clamp_min(1)
