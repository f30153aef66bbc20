"""Cross-entropy and KL from a teacher, with their gradient by formula, in place.

Level: maths. With q = softmax(z) and p = softmax(t / T) the gradient of
task_weight x cross-entropy + logit_weight x T^2 x KL(p || softmax(z / T)) is
task_weight (q - target) + logit_weight T (softmax(z / T) - p), so one exponential of each tensor suffices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from hf_compress.distillation.sparse import SparseRows

_IMPOSSIBLE = -1e4
# Bytes of the float32 logits that are worked on together: a CPU's cache, or enough for one kernel of a GPU.
_BLOCK_BYTES = {"cpu": 4 << 20, "other": 64 << 20}


class TermWeights(NamedTuple):
    """How the terms of the loss are made and weighted.

    Args:
        task: weight of the cross-entropy.
        logit: weight of the divergence.
        temperature: T, above 0.
        smoothing: of the labels, 0-1, as in `torch.nn.functional.cross_entropy`.
        with_entropy: add the teacher's entropy, which makes the divergence soft cross-entropy.
    """

    task: float
    logit: float
    temperature: float = 1.0
    smoothing: float = 0.0
    with_entropy: bool = False


def cross_entropy_and_kl(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    teachers: Iterable[tuple[float, torch.Tensor | SparseRows]],
    weights: TermWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weighted sum of cross-entropy and T^2 x KL(teacher || student), its gradient, and both sums.

    Args:
        logits: z, float32 (rows, classes); overwritten with the gradient.
        labels: int64 (rows,); None for no cross-entropy.
        teachers: (share, logits t), shares summing to 1, each (rows, classes) float32, overwritten; or sparse rows at
            this temperature.
        weights: of the terms.

    Returns:
        The loss, 0-D; the gradient (rows, classes); float32 (2,) with the sums of both terms without their weights.
    """
    teachers = list(teachers)
    sums = logits.new_zeros(2)
    size = max(1, _BLOCK_BYTES["cpu" if logits.device.type == "cpu" else "other"] // (4 * logits.shape[-1]))
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        theirs = [(share, t.rows(rows) if isinstance(t, SparseRows) else t[rows]) for share, t in teachers]
        gradient, found = _block(logits[rows], None if labels is None else labels[rows], theirs, weights)
        logits[rows] = gradient
        sums += found
    return weights.task * sums[0] + weights.logit * sums[1], logits, sums


def _block(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    teachers: list[tuple[float, torch.Tensor | SparseRows]],
    weights: TermWeights,
) -> tuple[torch.Tensor, torch.Tensor]:
    gradient, sums = _exponentials(logits, 1.0)
    task = divergence = logits.new_zeros(())
    on_task, on_labels = (weights.task, weights.task * (1 - weights.smoothing)) if labels is not None else (0.0, 0.0)
    if labels is not None:
        picked = logits.gather(-1, labels[:, None]) - sums.log()
        task = -(1 - weights.smoothing) * picked.sum()
        if weights.smoothing:
            task = task - weights.smoothing * (logits.mean(-1, keepdim=True) - sums.log()).sum()
    scale = weights.logit * weights.temperature
    if weights.temperature == 1:
        gradient *= (on_task + scale) / sums
    else:
        gradient *= on_task / sums
        softer, sums = _exponentials(logits, weights.temperature)
        gradient += softer.mul_(scale / sums)
    if labels is not None:
        gradient.scatter_add_(-1, labels[:, None], torch.full_like(sums, -on_labels))
        if weights.smoothing:
            gradient -= on_task * weights.smoothing / logits.shape[-1]
    for share, theirs in teachers:
        attraction, entropy = _teach(gradient, logits, theirs, scale * share, weights.temperature)
        # The shares sum to 1, so each has its part of the student's normalisation.
        cross_entropy = sums.log().sum() - attraction
        divergence = divergence + share * (cross_entropy if weights.with_entropy else cross_entropy - entropy)
    return gradient, torch.stack([task, divergence * weights.temperature**2])


def _teach(
    gradient: torch.Tensor, logits: torch.Tensor, theirs: torch.Tensor | SparseRows, scale: float, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take scale x p off the gradient; return the sum of p x logits, and the entropy of p summed over rows."""
    if isinstance(theirs, SparseRows):
        gradient.scatter_add_(-1, theirs.ids, theirs.mass * -scale)
        return (logits.gather(-1, theirs.ids) * theirs.mass).sum(), theirs.entropy.sum()
    p, sums = _exponentials(theirs, temperature)
    p /= sums
    gradient.add_(p, alpha=-scale)
    return torch.dot(p.view(-1), logits.view(-1)), sums.log().sum() - torch.dot(p.view(-1), theirs.view(-1))


def _exponentials(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide by the temperature and take the largest off each row, in place; return exponentials and their sums."""
    if temperature != 1:
        logits /= temperature
    # What is impossible (-inf) stays finite, so that 0 times it is 0.
    logits.sub_(logits.amax(-1, keepdim=True)).clamp_(min=_IMPOSSIBLE)
    exponentials = logits.exp()
    return exponentials, exponentials.sum(-1, keepdim=True)
