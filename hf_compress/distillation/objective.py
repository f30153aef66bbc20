"""`DistillationObjective`: the teacher's part of the loss for one batch, as a sum and a count.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.distillation.alignment import alignment_of, refuse_unsupported_task
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.losses import DIVERGENCES
from hf_compress.distillation.reduce import divergence_term, valid_positions
from hf_compress.distillation.teacher import Teacher, check_teacher
from hf_compress.errors import TeacherError, UnsupportedError


class DistillationObjective:
    """Compares a student's logits with a teacher's.

    Args:
        config: temperature, weights, divergence.
        teacher: a frozen model.
        student: the model in training, to check that both fit and to find which positions count.

    Raises:
        ConfigError: for an unknown divergence.
        TeacherError: if teacher and student do not fit together.
        UnsupportedError: for tasks whose outputs are no softmax.
    """

    def __init__(self, config: DistillationConfig, teacher: Teacher, student: nn.Module) -> None:
        refuse_unsupported_task(student)
        check_teacher(teacher.model, student)
        self.config = config
        self.teacher = teacher
        self.alignment = alignment_of(student)
        self._divergence = DIVERGENCES.get(config.divergence)

    def __call__(self, student_logits: torch.Tensor, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        """Return T^2 x divergence summed over the positions that count, and their number.

        Args:
            student_logits: shape (batch, classes) or (batch, length, classes).
            inputs: the batch, with or without labels.

        Raises:
            UnsupportedError: if labels are numbers (regression, multi-label).
            TeacherError: if the teacher's logits have another shape.
        """
        labels = inputs.get("labels")
        if labels is not None and labels.is_floating_point():
            raise UnsupportedError(
                "labels are floating-point, which means regression or multi-label classification; this version "
                "distils softmax outputs only"
            )
        teacher_logits = self.teacher.logits(inputs)
        positions = valid_positions(inputs, self.alignment)
        expected = (*positions.shape, student_logits.shape[-1])
        if student_logits.shape[:-1] != positions.shape or teacher_logits.shape[:-1] != positions.shape:
            raise TeacherError(
                f"expected logits of shape {expected}, found {tuple(student_logits.shape)} from the student and "
                f"{tuple(teacher_logits.shape)} from the teacher"
            )
        return divergence_term(self._divergence, student_logits, teacher_logits, positions, self.config.temperature)
