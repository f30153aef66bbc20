"""Which entries to prune, given their scores: exactly as many as asked for, also under ties.

Level: maths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def kth_smallest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k-th smallest entry (k from 1) of the 1-D float tensor `values`, as a 0-D tensor."""
    if values.device.type == "cpu":
        # numpy's vectorised introselect takes a tenth of torch.kthvalue's time on ten million entries.
        import numpy as np

        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
    return torch.kthvalue(values, k).values


def keep_largest(scores: Sequence[torch.Tensor], prune: int) -> list[torch.Tensor]:
    """Mark the entries that stay when the `prune` lowest-scored ones, over all tensors together, go.

    Args:
        scores: float tensors of any shapes, on one device. Of equal scores, the one that comes first
            (by tensor, then by index) goes first.
        prune: how many entries go, 0 to their total number.

    Returns:
        Bool tensors shaped like `scores` with exactly `prune` False entries in all.

    Raises:
        ValueError: if `prune` is out of range or a score is NaN.
    """
    flat = scores[0].detach().reshape(-1) if len(scores) == 1 else torch.cat([s.detach().reshape(-1) for s in scores])
    flat = flat.float()
    if not 0 <= prune <= flat.numel():
        raise ValueError(f"prune must lie between 0 and the number of scores ({flat.numel()}), found {prune}")
    if flat.numel() and torch.isnan(flat.max()):
        raise ValueError("scores hold NaN, so they have no order; the weights have probably diverged")
    keep = torch.ones_like(flat, dtype=torch.bool) if prune == 0 else _above(flat, prune)
    parts = keep.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def _above(flat: torch.Tensor, prune: int) -> torch.Tensor:
    threshold = kth_smallest(flat, prune)
    keep = flat > threshold
    spare = flat.numel() - prune - int(torch.count_nonzero(keep))
    # Entries equal to the threshold, of which the last `spare` must stay all the same.
    tied = (flat == threshold).nonzero().squeeze(1) if spare else flat[:0]
    if spare:
        keep[tied[len(tied) - spare :]] = True
    return keep
