"""Which entries to prune, given their scores: exactly as many as asked for, also under ties and over shards.

Level: maths. The k-th smallest score of any number of tensors is read off the bits of the floats, by two histograms:
one of the upper 16 bits, one of the lower 16 among those that share the upper half with it. Nothing is sorted, joined
or copied; over shards the histograms are added up, so every rank finds the same threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

_BINS = 1 << 16
# Temporaries of this many entries stay in the cache; each chunk costs one histogram of 512 kB.
_CHUNK = 1 << 20


class Ranks(Protocol):
    """How processes that hold parts of the same tensors put numbers together."""

    rank: int

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over the processes."""
        ...

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` of all processes, shape (processes, *values.shape)."""
        ...


class OneRank:
    """All scores are here."""

    rank = 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`."""
        return values

    def stack(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` as the only row."""
        return values[None]


def kth_smallest(scores: Sequence[torch.Tensor], k: int, ranks: Ranks | None = None) -> torch.Tensor:
    """Return the k-th smallest score over all tensors and processes, as a 0-D float32 tensor.

    Args:
        scores: float32 tensors of any shapes, on one device.
        k: from 1 to their total number over all processes.
        ranks: how processes add up; None if all scores are here.

    Raises:
        ValueError: if a score is NaN.
    """
    ranks = ranks or OneRank()
    flat = [s.detach().reshape(-1).view(torch.int32) for s in scores]
    device = flat[0].device
    upper = torch.zeros(_BINS, dtype=torch.int64, device=device)
    for bits in flat:
        for chunk in bits.split(_CHUNK):
            upper += torch.bincount(_ordered(chunk).bitwise_right_shift_(16).add_(_BINS // 2), minlength=_BINS)
    upper = ranks.sum(upper)
    up, before = _bin_of(upper, k)
    lower = torch.zeros(_BINS, dtype=torch.int64, device=device)
    for bits in flat:
        for chunk in bits.split(_CHUNK):
            ordered = _ordered(chunk)
            inside = ordered[ordered.bitwise_right_shift(16) == up - _BINS // 2]
            lower += torch.bincount(inside.bitwise_and_(_BINS - 1), minlength=_BINS)
    lower = ranks.sum(lower)
    _refuse_nan(upper, ranks, flat)
    low, _ = _bin_of(lower, k - before)
    bits = torch.tensor([((up - _BINS // 2) << 16) | low], dtype=torch.int64).to(torch.int32)
    return _ordered(bits).view(torch.float32)[0].to(device)


def keep_largest(scores: Sequence[torch.Tensor], prune: int, ranks: Ranks | None = None) -> list[torch.Tensor]:
    """Mark the entries that stay when the `prune` lowest-scored ones, over all tensors and processes together, go.

    Args:
        scores: float32 tensors of any shapes, on one device. Of equal scores, the one that comes first
            (by tensor, then by process, then by index) goes first.
        prune: how many entries go, 0 to their total number.
        ranks: how processes that hold consecutive parts of each tensor add up; None if all scores are here.

    Returns:
        Bool tensors shaped like `scores` with exactly `prune` False entries in all.

    Raises:
        ValueError: if `prune` is out of range or a score is NaN.
    """
    ranks = ranks or OneRank()
    scores = [s.detach().float() for s in scores]
    total = int(ranks.sum(torch.tensor(sum(s.numel() for s in scores))))
    if not 0 <= prune <= total:
        raise ValueError(f"prune must lie between 0 and the number of scores ({total}), found {prune}")
    if prune == 0:
        _refuse_nan(None, ranks, [s.reshape(-1).view(torch.int32) for s in scores])
        return [torch.ones_like(s, dtype=torch.bool) for s in scores]
    threshold = kth_smallest(scores, prune, ranks)
    keep = [s >= threshold for s in scores]
    tied = [int((s == threshold).sum()) for s in scores]
    counts = torch.tensor([[int(k.sum()), t] for k, t in zip(keep, tied, strict=True)])
    everywhere = ranks.stack(counts)
    # Of the tied entries, which are kept so far, the first ones go until `prune` are gone.
    excess = prune - (total - int(everywhere[..., 0].sum()))
    for number, (kept, score) in enumerate(zip(keep, scores, strict=True)):
        earlier = int(everywhere[:, :number, 1].sum() + everywhere[: ranks.rank, number, 1].sum())
        drop = min(max(0, excess - earlier), tied[number])
        if drop:
            kept.view(-1)[(score.reshape(-1) == threshold).nonzero().squeeze(1)[:drop]] = False
    return keep


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Turn the bits of float32, as int32, into int32 that sort as the floats do; its own inverse. -0 becomes +0."""
    flipped = bits.bitwise_right_shift(31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    # -0.0 and 0.0 are equal as floats and would be neighbours here.
    return flipped.masked_fill_(flipped == -1, 0)


def _bin_of(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th entry, and how many entries lie in lower bins."""
    sums = histogram.cumsum(0)
    found = int(torch.searchsorted(sums, k))
    return found, int(sums[found] - histogram[found])


def _refuse_nan(upper: torch.Tensor | None, ranks: Ranks, flat: Sequence[torch.Tensor]) -> None:
    """Raise on NaN, which lie outside the infinities; `upper` tells it without a look at the scores, but for few."""
    infinity = 0x7F80
    if upper is not None:
        # Bins of the infinities also hold NaN with small mantissas.
        outside = upper[: _BINS // 2 - 1 - infinity].sum() + upper[_BINS // 2 + infinity + 1 :].sum()
        if not int(outside + upper[_BINS // 2 - 1 - infinity] + upper[_BINS // 2 + infinity]):
            return
    found = sum(int(bits.view(torch.float32).isnan().sum()) for bits in flat)
    if int(ranks.sum(torch.tensor(found))):
        raise ValueError("scores hold NaN, so they have no order; the weights have probably diverged")
