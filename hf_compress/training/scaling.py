"""How a micro-batch's loss is scaled, so that any split of a batch into micro-batches gives the same gradient.

Level: glue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_compress.distillation.reduce import PREDICTIONS, count_tokens, valid_positions


class LossScale:
    """Counts what a batch's loss is divided by: samples or tokens over all its micro-batches and ranks.

    Args:
        alignment: of predictions and labels; see `distillation.reduce`.
    """

    def __init__(self, alignment: str) -> None:
        self.alignment = alignment
        self._whole: dict[str, torch.Tensor] = {}
        self._world = 1

    def count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how many predictions of `batch` count, 0-D."""
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
        counts = [self._counts(batch) for batch in batches]
        names = list(counts[0])
        sums = torch.stack([torch.stack([c[n].to(device) for c in counts]).sum() for n in names])
        if accelerator is not None:
            sums = accelerator.gather(sums[None]).sum(0)
            # Averaging gradients over ranks divides by their number once more.
            self._world = accelerator.num_processes
        self._whole = dict(zip(names, sums, strict=True))

    def part(self, total: torch.Tensor, count: Any, counted: str = PREDICTIONS) -> torch.Tensor:
        """Return the part that a micro-batch's sum has in the whole batch's mean.

        Args:
            total: sum over what counts in the micro-batch, 0-D.
            count: how many these are; the whole batch, where none was collected.
            counted: what is counted.
        """
        whole = self._whole.get(counted)
        whole = torch.as_tensor(count, device=total.device) if whole is None else whole
        return total * self._world / whole.clamp_min(1)

    def _counts(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
        return {PREDICTIONS: self.count(batch), **count_tokens(tensors)}
