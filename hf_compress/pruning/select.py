"""Which entries to prune, given their scores: exactly as many as asked for, also under ties and over shards.

Level: maths. The k-th smallest score of any number of tensors is read off the bits of the floats, by two histograms:
one of the upper 16 bits, one of the lower 16 among those that share the upper half with it. Nothing is sorted, joined
or copied; over shards the histograms are added up, so every rank finds the same threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from hf_compress.errors import DivergedError

_BINS = 1 << 16
# The upper half of the bits of infinity; of minus infinity with the sign bit, which is the middle of the bins.
_INFINITY, _SIGN = 0x7F80, _BINS // 2
# Temporaries of this many entries stay in the cache; each chunk costs one histogram of 512 kB.
_CHUNK = 1 << 18


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


class Threshold(NamedTuple):
    """Where the order of all scores is cut.

    Attributes:
        value: the k-th smallest score, 0-D float32.
        below: how many scores are smaller.
        equal: how many are equal to it.
    """

    value: torch.Tensor
    below: int
    equal: int


def find_threshold(scores: Sequence[torch.Tensor], k: int, ranks: Ranks | None = None) -> Threshold:
    """Find the k-th smallest score over all tensors and processes.

    Args:
        scores: float32 tensors of any shapes, on one device.
        k: from 1 to their total number over all processes.
        ranks: how processes add up; None if all scores are here.

    Raises:
        DivergedError: if a score is NaN.
    """
    ranks = ranks or OneRank()
    bits = [s.detach().reshape(-1).view(torch.int32) for s in scores]
    order = _ascending(bits[0].device)
    upper = _histogram(_upper(chunk) for chunk in _chunks(bits))
    upper = ranks.sum(upper)
    _refuse_nan(upper, bits, ranks)
    position, before = _bin_of(upper[order], k)
    bin_ = int(order[position])
    inside = (_select(chunk, _upper(chunk) == bin_) for chunk in _chunks(bits))
    lower = ranks.sum(_histogram(chunk.bitwise_and(_BINS - 1) for chunk in inside))
    # Of negative numbers, larger bits are smaller values.
    lower = lower.flip(0) if bin_ >= _SIGN else lower
    low, smaller = _bin_of(lower, k - before)
    found = (bin_ << 16) | (_BINS - 1 - low if bin_ >= _SIGN else low)
    value = torch.tensor([found], dtype=torch.int64).to(torch.int32).view(torch.float32)[0]
    threshold = Threshold(value.to(bits[0].device), before + smaller, int(lower[low]))
    # The two zeros are neighbours in this order and equal as floats.
    return threshold if found & 0x7FFFFFFF else _join_zeros(threshold, bits, ranks)


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
        ValueError: if `prune` is out of range.
        DivergedError: if a score is NaN.
    """
    ranks = ranks or OneRank()
    scores = [s.detach().float() for s in scores]
    total = int(ranks.sum(torch.tensor(sum(s.numel() for s in scores))))
    if not 0 <= prune <= total:
        raise ValueError(f"prune must lie between 0 and the number of scores ({total}), found {prune}")
    if prune == 0:
        _count_nan([s.reshape(-1) for s in scores], ranks)
        return [torch.ones_like(s, dtype=torch.bool) for s in scores]
    threshold = find_threshold(scores, prune, ranks)
    keep = [s > threshold.value for s in scores]
    stay = threshold.below + threshold.equal - prune
    return keep if stay == 0 else _keep_tied(keep, scores, threshold, stay, ranks)


def sink_(scores: torch.Tensor, stays: torch.Tensor) -> None:
    """Put the scores of entries that do not stay below all others, in place.

    Args:
        scores: float32, of absolute values below 1e29.
        stays: bool, same shape.
    """
    # Adding is vectorised, masked_fill_ is not; in chunks, since torch makes floats of the bools first.
    for score, stay in zip(scores.view(-1).split(_CHUNK), stays.reshape(-1).split(_CHUNK), strict=True):
        score.add_(~stay, alpha=-1e30)


def _keep_tied(
    keep: list[torch.Tensor], scores: Sequence[torch.Tensor], threshold: Threshold, stay: int, ranks: Ranks
) -> list[torch.Tensor]:
    """Mark, of the scores that are equal to the threshold, the last `stay` too."""
    # count_nonzero, since sum makes an int64 copy of bools.
    tied = torch.tensor([int(torch.count_nonzero(s == threshold.value)) for s in scores])
    everywhere = ranks.stack(tied)
    for number, (kept, score) in enumerate(zip(keep, scores, strict=True)):
        later = int(everywhere[:, number + 1 :].sum() + everywhere[ranks.rank + 1 :, number].sum())
        last = min(max(0, stay - later), int(tied[number]))
        if last:
            places = (score.reshape(-1) == threshold.value).nonzero().squeeze(1)
            kept.view(-1)[places[len(places) - last :]] = True
    return keep


def _chunks(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for tensor in tensors:
        yield from tensor.split(_CHUNK)


def _upper(bits: torch.Tensor) -> torch.Tensor:
    """Return the upper half of int32, 0 to 65535."""
    return bits.bitwise_right_shift(16).bitwise_and_(_BINS - 1)


def _histogram(values: Iterator[torch.Tensor]) -> torch.Tensor:
    """Count integers from 0 to 65535 over all tensors, int64."""
    total: torch.Tensor | None = None
    for chunk in values:
        counts = torch.bincount(chunk, minlength=_BINS)
        total = counts if total is None else total.add_(counts)
    return torch.zeros(_BINS, dtype=torch.int64) if total is None else total


def _ascending(device: torch.device) -> torch.Tensor:
    """Return the upper halves in the order of the floats: negative ones have the sign bit and run backwards."""
    return torch.cat([torch.arange(_BINS - 1, _SIGN - 1, -1), torch.arange(_SIGN)]).to(device)


def _select(chunk: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if chunk.device.type != "cpu":
        return chunk[mask]
    # numpy passes over what is False without looking at each entry.
    import numpy as np

    return chunk[torch.from_numpy(np.flatnonzero(mask.numpy()))]


def _bin_of(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th entry, and how many entries lie in lower bins."""
    sums = histogram.cumsum(0)
    found = int(torch.searchsorted(sums, k))
    return found, int(sums[found] - histogram[found])


def _join_zeros(threshold: Threshold, bits: Sequence[torch.Tensor], ranks: Ranks) -> Threshold:
    """Return the threshold 0 with both zeros counted as equal, and below it what is negative."""
    floats = [b.view(torch.float32) for b in bits]
    below = sum(int(torch.count_nonzero(c < 0)) for c in _chunks(floats))
    equal = sum(int(torch.count_nonzero(c == 0)) for c in _chunks(floats))
    below, equal = ranks.sum(torch.tensor([below, equal])).tolist()
    return Threshold(torch.zeros_like(threshold.value), below, equal)


def _refuse_nan(upper: torch.Tensor, bits: Sequence[torch.Tensor], ranks: Ranks) -> None:
    """Raise on NaN, which lie in or beyond the bins of the infinities."""
    outside = upper[_INFINITY:_SIGN].sum() + upper[_SIGN + _INFINITY :].sum()
    if int(outside):
        _count_nan([b.view(torch.float32) for b in bits], ranks)


def _count_nan(floats: Sequence[torch.Tensor], ranks: Ranks) -> None:
    found = sum(int(torch.count_nonzero(chunk.isnan())) for chunk in _chunks(floats))
    if int(ranks.sum(torch.tensor(found))):
        raise DivergedError(
            "scores hold NaN, so they have no order; the weights have probably diverged: lower the learning rate or "
            "look for NaN in the data, and resume from an earlier checkpoint"
        )
