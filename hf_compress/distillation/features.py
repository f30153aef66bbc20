"""What a student can learn besides logits: hidden states, attention maps, relations and similarities.

Level: maths. Each takes tensors of one pair of layers and a mask of the tokens that count, and returns
`(sum, count)`; the sum over the count is a mean that does not grow with batch, length, width or number of heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

Term = tuple[torch.Tensor, torch.Tensor]


def hidden_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> Term:
    """Mean squared difference of hidden states over the teacher's mean square, token by token.

    The division makes it free of the scale of the teacher's states.

    Args:
        student: (batch, length, width), already projected to the teacher's width.
        teacher: same shape; no gradient flows into it.
        mask: bool (batch, length), True where a token counts.

    Returns:
        The sum over the tokens that count, 0-D float32, and their number, 0-D.

    Source: Jiao et al. 2020, "TinyBERT", equation 8; normalised.
    """
    student, teacher = student[mask].float(), teacher.detach()[mask].float()
    error = (student - teacher).square().mean(-1)
    return (error / teacher.square().mean(-1).clamp(min=1e-12)).sum(), mask.sum()


def hidden_cosine(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> Term:
    """1 - cosine of hidden states, token by token; arguments as `hidden_mse`.

    Source: Sanh et al. 2019, "DistilBERT", section 3.
    """
    cosine = F.cosine_similarity(student[mask].float(), teacher.detach()[mask].float(), dim=-1)
    return (1 - cosine).sum(), mask.sum()


def attention_kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> Term:
    """KL(teacher || student) of attention probabilities, averaged over the heads, row by row.

    Args:
        student: (batch, heads, length, keys), rows that sum to 1.
        teacher: (batch, heads of the teacher, length, keys); where the numbers of heads differ, the means over heads
            are compared.
        mask: bool (batch, length), True where a query counts.

    Returns:
        The sum over the rows that count, and their number.

    Source: Jiao et al. 2020, "TinyBERT", equation 7, with KL for its squared error.
    """
    teacher = teacher.detach()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    p, q = teacher.float().clamp(min=1e-9), student.float().clamp(min=1e-9)
    rows = (p * (p.log() - q.log())).sum(-1).mean(1)
    return rows[mask].sum(), mask.sum()


def relation_kl(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, heads: int) -> Term:
    """KL(teacher || student) of the scaled dot products between tokens, in `heads` relation heads.

    Args:
        student: queries, keys or values of all heads side by side, (batch, length, width).
        teacher: (batch, length, width of the teacher); both widths are multiples of `heads`.
        mask: bool (batch, length), True where a token counts, as a query and as a key.
        heads: number of relation heads, whatever the numbers of attention heads are.

    Returns:
        The sum over the tokens that count, averaged over the heads, and their number.

    Source: Wang et al. 2021, "MiniLMv2", equations 1 to 5.
    """
    p, q = _relations(teacher.detach(), mask, heads), _relations(student, mask, heads)
    # Padded keys are -inf in both, and their probability is 0.
    rows = (p.exp() * (p - q).masked_fill(~mask[:, None, None, :], 0.0)).sum(-1).mean(1)
    return rows[mask].sum(), mask.sum()


def gram_mse(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> Term:
    """Mean squared difference of the cosines between all pairs of tokens of a text; widths may differ.

    Args:
        student: (batch, length, width).
        teacher: (batch, length, width of the teacher); no gradient flows into it.
        mask: bool (batch, length), True where a token counts.

    Returns:
        The sum over the tokens that count, each averaged over its pairs, and their number.

    Source: Tung & Mori 2019, "Similarity-preserving knowledge distillation", within a text instead of a batch.
    """
    gaps = (_cosines(student) - _cosines(teacher.detach())).square() * mask[:, None, :]
    rows = gaps.sum(-1) / mask.sum(-1, keepdim=True).clamp(min=1)
    return rows[mask].sum(), mask.sum()


def _relations(vectors: torch.Tensor, mask: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = vectors.shape
    split = vectors.float().view(batch, length, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(width // heads)
    return F.log_softmax(scores.masked_fill(~mask[:, None, None, :], -torch.inf), dim=-1)


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(vectors.float(), dim=-1)
    return unit @ unit.transpose(-1, -2)
