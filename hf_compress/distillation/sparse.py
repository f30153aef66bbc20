"""A teacher's distribution over a large vocabulary in short: its largest probabilities, and draws from the rest.

Level: maths. The largest k are exact. The rest is drawn from with replacement, and each draw stands for an equal part
of its mass, so the expectation of the target is the teacher's distribution, and the expected gradient of forward KL is
the exact one. The largest alone, scaled to a sum of 1, make a student over-confident.

Source: the draws are those of Anshumann et al. 2025, "Sparse logit sampling", here of the tail only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class SparseRows(NamedTuple):
    """Distributions over classes, of which only some have mass.

    Args:
        ids: int64 (rows, entries); a class may stand in several entries.
        mass: float32 (rows, entries), summing to 1 in each row.
        entropy: float32 (rows,), of the whole distribution, in nats.
    """

    ids: torch.Tensor
    mass: torch.Tensor
    entropy: torch.Tensor

    def rows(self, which: slice | torch.Tensor) -> SparseRows:
        """Return some of the rows."""
        return SparseRows(self.ids[which], self.mass[which], self.entropy[which])

    def within(self, classes: int) -> SparseRows:
        """Return the distributions over the first `classes` classes alone (where a vocabulary was padded further)."""
        mass = torch.where(self.ids < classes, self.mass, 0.0)
        return SparseRows(self.ids.clamp_max(classes - 1), mass / mass.sum(-1, keepdim=True), self.entropy)


def sample_tail(logits: torch.Tensor, top_k: int, draws: int, generator: torch.Generator | None = None) -> SparseRows:
    """Keep the `top_k` largest probabilities of each row, and `draws` draws from the others.

    Args:
        logits: (rows, classes), already divided by the temperature.
        top_k: at least 1; all, if there are no more classes.
        draws: at least 0; with 0 the largest are scaled to a sum of 1, which is biased.
        generator: of the draws, on the device of `logits`.
    """
    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)
    mass, ids = p.topk(min(top_k, p.shape[-1]), -1)
    if draws == 0 or mass.shape[-1] == p.shape[-1]:
        return SparseRows(ids, mass / mass.sum(-1, keepdim=True), entropy)
    rest = p.scatter(-1, ids, 0.0)
    left = rest.sum(-1, keepdim=True)
    # Where nothing is left, anything may be drawn: it gets no mass.
    drawn = torch.multinomial(torch.where(left > 0, rest, 1.0), draws, replacement=True, generator=generator)
    total = mass.sum(-1, keepdim=True) + left
    return SparseRows(
        torch.cat([ids, drawn], -1), torch.cat([mass, (left / draws).expand(-1, draws)], -1) / total, entropy
    )


def sparse_divergence(
    student_logits: torch.Tensor, target: SparseRows, temperature: float = 1.0, with_entropy: bool = False
) -> torch.Tensor:
    """Return T^2 x the sum over rows of KL(target || student), in nats; unbiased where the tail was drawn.

    Args:
        student_logits: (rows, classes).
        target: the teacher's distributions at this temperature.
        temperature: T, above 0.
        with_entropy: return the cross-entropy, which is the KL plus the teacher's entropy.
    """
    logits = student_logits.float() / temperature
    cross_entropy = torch.logsumexp(logits, -1) - (logits.gather(-1, target.ids) * target.mass).sum(-1)
    return (cross_entropy if with_entropy else cross_entropy - target.entropy).sum() * temperature**2
