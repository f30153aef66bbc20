"""`DistillationObjective`: the teacher's part of the loss for one batch, as a sum and a count.

Level: state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.distillation.alignment import alignment_of, outputs_of
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.losses import DIVERGENCES, Divergence
from hf_compress.distillation.reduce import ROWS, SPANS, divergence_term, span_logits, valid_positions
from hf_compress.distillation.teacher import Teacher, check_teacher
from hf_compress.errors import ConfigError, TeacherError, did_you_mean


class DistillationObjective:
    """Compares a student's outputs with a teacher's.

    Args:
        config: temperature, weights, divergence.
        teacher: a frozen model.
        student: the model in training, to check that both fit and to find which positions count.

    Raises:
        ConfigError: for an unknown divergence or option of it.
        TeacherError: if teacher and student do not fit together.
    """

    def __init__(self, config: DistillationConfig, teacher: Teacher, student: nn.Module) -> None:
        self.config = config
        self.teacher = teacher
        self.student = student
        self.alignment = alignment_of(student)
        self._order = check_teacher(teacher.model, student)
        self._divergence, self._follows_progress = make_divergence(config)

    def __call__(self, outputs: Any, inputs: Mapping[str, Any], progress: float = 1.0) -> tuple[torch.Tensor, int]:
        """Return T^2 x divergence summed over the positions that count, and their number.

        Args:
            outputs: of the student: a mapping or a tuple, with logits (batch, classes) or (batch, length, classes), or
                `start_logits` and `end_logits` (batch, length).
            inputs: the batch, with or without labels.
            progress: how much of training is done, 0-1.

        Raises:
            TeacherError: if the teacher's logits are missing or have another shape.
        """
        divergence = (
            functools.partial(self._divergence, progress=progress) if self._follows_progress else self._divergence
        )
        expected = self.teacher.outputs(inputs)
        positions = valid_positions({k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}, self.alignment)
        if self.alignment == SPANS:
            return self._spans(outputs, expected, inputs, positions, divergence)
        student_logits, teacher_logits = logits_of(outputs), logits_of(expected)
        if teacher_logits is None or student_logits is None:
            raise TeacherError(
                f"the {'teacher' if teacher_logits is None else 'student'} returned no logits; load it with the head "
                "of the task (an AutoModelFor... class)"
            )
        if self._order is not None:
            teacher_logits = teacher_logits[..., self._order.to(teacher_logits.device)]
        self._check_shapes(positions, student_logits, teacher_logits)
        kind = outputs_of(self.student, inputs.get("labels"))
        return divergence_term(divergence, student_logits, teacher_logits, positions, self.config.temperature, kind)

    def _spans(
        self, outputs: Any, expected: Any, inputs: Mapping[str, Any], positions: torch.Tensor, divergence: Divergence
    ) -> tuple[torch.Tensor, int]:
        """Average the divergence of the start and that of the end."""
        mask = inputs.get("attention_mask")
        total: Any = 0.0
        for name in ("start_logits", "end_logits"):
            if name not in outputs or name not in expected:
                raise TeacherError(f"expected {name} from teacher and student; load both for question answering")
            ours, theirs = span_logits(outputs[name], mask), span_logits(expected[name], mask)
            part, _ = divergence_term(divergence, ours, theirs, positions, self.config.temperature)
            total = total + part / 2
        return total, int(positions.sum())

    def _check_shapes(self, positions: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> None:
        if self.alignment == ROWS and student.dim() == 1 and teacher.dim() == 1:
            return
        if student.shape[:-1] != positions.shape or teacher.shape[:-1] != positions.shape:
            expected = (*positions.shape, student.shape[-1])
            raise TeacherError(
                f"expected logits of shape {expected}, found {tuple(student.shape)} from the student and "
                f"{tuple(teacher.shape)} from the teacher"
            )


def make_divergence(config: DistillationConfig) -> tuple[Divergence, bool]:
    """Return the divergence that `config` names, with its options, and whether it asks for the progress of training.

    Raises:
        ConfigError: for an unknown name or option.
    """
    function = DIVERGENCES.get(config.divergence)
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in keywords if name != "progress"]
    problems = []
    for name, value in config.divergence_options.items():
        if name not in known:
            exist = f"there are: {', '.join(known)}" if known else "it has none"
            near = did_you_mean(name, known)
            problems.append(f"divergence {config.divergence!r} has no option {name!r}{near}; {exist}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            problems.append(f"option {name!r} of divergence {config.divergence!r} must lie in 0-1, found {value!r}")
    if problems:
        raise ConfigError("DistillationConfig: " + "; ".join(problems))
    return functools.partial(function, **config.divergence_options), "progress" in keywords


def logits_of(outputs: Any) -> torch.Tensor | None:
    """Return the logits in the output of a model: by name, or the first tensor of a tuple that is no loss."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    parts: Sequence[Any] = outputs if isinstance(outputs, (tuple, list)) else ()
    return next((o for o in parts if isinstance(o, torch.Tensor) and o.dim() > 1), None)
