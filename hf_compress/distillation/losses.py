"""Divergences between the logits of a teacher and a student: one function each, keyword arguments are its options.

Level: maths. Each takes logits (rows, classes) that are already chosen and divided by the temperature, and returns
`(sum over rows, number of rows)`, in nats; which rows count and how they are scaled is `reduce`'s business alone. No
gradient flows into the teacher's logits, and a constant added to a row changes nothing. Where both logits are equal,
all are 0 but soft cross-entropy, which adds the teacher's entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_compress.registry import Registry

# Takes (student logits, teacher logits, **options).
Divergence = Callable[..., tuple[torch.Tensor, int]]

DIVERGENCES: Registry[Divergence] = Registry("divergence")


@DIVERGENCES.register("forward_kl")
def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """KL(teacher || student): the student covers all that the teacher thinks possible.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    return _kl(p, q).sum(), len(q)


@DIVERGENCES.register("reverse_kl")
def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """KL(student || teacher): the student keeps to what the teacher thinks likely.

    Source: Gu et al. 2024, "MiniLLM", section 2.1.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    return _kl(q, p).sum(), len(q)


@DIVERGENCES.register("jsd")
def jsd(student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, beta: float = 0.5) -> tuple[torch.Tensor, int]:
    """Generalised Jensen-Shannon divergence: beta KL(teacher || mix) + (1 - beta) KL(student || mix).

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes).
        beta: share of the teacher in the mix, 0-1, ends excluded. Over beta it tends to forward KL for beta -> 0, over
            1 - beta to reverse KL for beta -> 1.

    Source: Agarwal et al. 2024, "On-policy distillation of language models", section 2.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    mix = _log_mix(p, q, beta)
    return (beta * _kl(p, mix) + (1 - beta) * _kl(q, mix)).sum(), len(q)


@DIVERGENCES.register("skewed_kl")
def skewed_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, alpha: float = 0.1
) -> tuple[torch.Tensor, int]:
    """KL(teacher || alpha teacher + (1 - alpha) student), whose gradient is bounded.

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes).
        alpha: share of the teacher in the mix, 0-1, 1 excluded; 0 is forward KL.

    Source: Ko et al. 2024, "DistiLLM", section 3.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    return _kl(p, _log_mix(p, q, alpha)).sum(), len(q)


@DIVERGENCES.register("skewed_reverse_kl")
def skewed_reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, alpha: float = 0.1
) -> tuple[torch.Tensor, int]:
    """KL(student || (1 - alpha) teacher + alpha student).

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes).
        alpha: share of the student in the mix, 0-1, 1 excluded; 0 is reverse KL.

    Source: Ko et al. 2024, "DistiLLM", section 3.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    return _kl(q, _log_mix(q, p, alpha)).sum(), len(q)


@DIVERGENCES.register("soft_cross_entropy")
def soft_cross_entropy(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Cross-entropy with the teacher's distribution as the target: forward KL plus the teacher's entropy.

    Source: Hinton et al. 2015, section 2.
    """
    p, q = _log_probabilities(student_logits, teacher_logits)
    return -(p.exp() * q).sum(), len(q)


@DIVERGENCES.register("mse")
def mse(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Half the mean squared difference of the logits, after the mean of each row is taken off.

    Forward KL times T^2 tends to it for high temperatures T.

    Source: Hinton et al. 2015, section 2.1.
    """
    difference = _wide(student_logits) - _wide(teacher_logits.detach())
    centred = difference - difference.mean(-1, keepdim=True)
    return centred.square().mean(-1).sum() / 2, len(centred)


@DIVERGENCES.register("taid")
def taid(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    progress: float = 1.0,
    start: float = 0.4,
    end: float = 1.0,
) -> tuple[torch.Tensor, int]:
    """Forward KL from a target that moves from the student to the teacher: the softmax of their mixed logits.

    Args:
        student_logits: (rows, classes).
        teacher_logits: (rows, classes).
        progress: how much of training is done, 0-1; whoever trains gives it.
        start: share of the teacher's logits at progress 0, 0-1.
        end: share at progress 1, 0-1; it moves linearly.

    Source: Shing et al. 2025, "TAID", with its linear schedule.
    """
    share = start + (end - start) * progress
    mixed = (1 - share) * _wide(student_logits.detach()) + share * _wide(teacher_logits.detach())
    return _kl(F.log_softmax(mixed, -1), F.log_softmax(_wide(student_logits), -1)).sum(), len(mixed)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Return float32, or float64 as it is."""
    return values if values.dtype == torch.float64 else values.float()


def _log_probabilities(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities of teacher and student."""
    return F.log_softmax(_wide(teacher_logits.detach()), -1), F.log_softmax(_wide(student_logits), -1)


def _kl(target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(target || other) of log-probabilities, one a row; classes with log-probability -inf in `target` count 0."""
    return (target.exp() * (target - other).masked_fill(target == -torch.inf, 0.0)).sum(-1)


def _log_mix(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Return log(share exp(first) + (1 - share) exp(second))."""
    return second if share == 0 else torch.logaddexp(first + math.log(share), second + math.log1p(-share))
