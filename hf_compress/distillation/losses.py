"""Divergences between the logits of a teacher and a student.

Level: maths. Each takes rows of logits that are already chosen and divided by the temperature, and returns
`(sum over rows, number of rows)`; which rows count and how they are scaled is `reduce`'s business alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_compress.registry import Registry

Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]

DIVERGENCES: Registry[Divergence] = Registry("divergence")


@DIVERGENCES.register("forward_kl")
def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """KL(teacher || student) in nats, summed over classes and rows; 0 if both are equal.

    Args:
        student_logits: shape (rows, classes).
        teacher_logits: shape (rows, classes).

    Returns:
        The sum, 0-D float32, and the number of rows.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2.
    """
    student = F.log_softmax(student_logits.float(), dim=-1)
    teacher = F.log_softmax(teacher_logits.float(), dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum"), len(student)
