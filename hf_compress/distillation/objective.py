"""`DistillationObjective`: the teacher's terms of the loss for one batch, each as a sum and a count.

Level: state.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_compress.distillation.alignment import alignment_of, outputs_of, plain_model, refuse_unaligned
from hf_compress.distillation.cached import CachedTeacher, sparse_rows
from hf_compress.distillation.capture import Seen, seen_in, use_eager_attention, watched_attention
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.knowledge import IntermediateKnowledge
from hf_compress.distillation.losses import DIVERGENCES, Divergence
from hf_compress.distillation.reduce import (
    NUMBERS,
    PREDICTIONS,
    ROWS,
    SIGMOID,
    SPANS,
    divergence_term,
    span_logits,
    valid_positions,
)
from hf_compress.distillation.sparse import sparse_divergence
from hf_compress.distillation.teacher import Teacher, logits_of
from hf_compress.errors import ConfigError, TeacherError, did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Args:
        weight: in the loss.
        total: sum over what counts in the batch, 0-D.
        count: how many these are.
        counted: what is counted; see `reduce`.
    """

    weight: float
    total: torch.Tensor
    count: Any
    counted: str = PREDICTIONS


@dataclass(frozen=True)
class Expected:
    """What a teacher says of a batch.

    Args:
        outputs: of its forward call.
        seen: its layers.
        hidden: what the teacher makes rows of logits from; None if `outputs` has them all.
    """

    outputs: Any
    seen: Seen
    hidden: Any = None


class DistillationObjective:
    """Compares a student's outputs and layers with a teacher's.

    Args:
        config: temperature, weights, divergence, layer map.
        teacher: a frozen model, or what it said.
        student: the model in training, to check that both fit and to find which positions count.

    Raises:
        ConfigError: for an unknown divergence or option of it.
        TeacherError: if teacher and student do not fit together.
        UnsupportedError: if there is weight on logits that are not one prediction for each row or token.
    """

    def __init__(self, config: DistillationConfig, teacher: Teacher | CachedTeacher, student: nn.Module) -> None:
        self.config = config
        self.teacher = teacher
        self.student = plain_model(student)
        self.alignment = alignment_of(student)
        if config.logit_weight > 0:
            refuse_unaligned(student)
        self._order = teacher.check(student) if config.logit_weight > 0 else None
        self._divergence, self._follows_progress = make_divergence(config)
        self._require_cache_fits()
        weights = (config.hidden_weight, config.attention_weight, config.relation_weight, config.gram_weight)
        self.knowledge = IntermediateKnowledge(config, self.student, teacher.model) if any(weights) else None
        if config.attention_weight > 0:
            changed = [m for m in (self.student, teacher.model) if use_eager_attention(m)]
            if changed:
                logger.warning(
                    "attention_weight needs attention maps, which only eager attention returns; it is slower and "
                    "holds maps of batch x heads x length x length for every layer"
                )

    def asks(self) -> dict[str, bool]:
        """Return what the forward call of the student must be given beside its inputs."""
        return self.knowledge.wanted.inputs() if self.knowledge is not None else {}

    def watching(self, model: nn.Module | None = None) -> Any:
        """Return the context in which the student, or `model`, must run; its value goes into the call below."""
        if self.knowledge is None or not self.knowledge.wanted.relations:
            return contextlib.nullcontext({})
        return watched_attention(self.student if model is None else model)

    def expect(self, inputs: Mapping[str, Any], is_chunked: bool = False) -> Expected:
        """Run the teacher on a batch.

        Args:
            inputs: the batch, with or without labels.
            is_chunked: leave its language-model head out; `Expected.hidden` has what goes into it.
        """
        watching = self.watching(self.teacher.model) if self.teacher.model is not None else contextlib.nullcontext({})
        with watching as theirs:
            if is_chunked:
                outputs, hidden = self.teacher.hidden(inputs, self.asks())
            else:
                outputs, hidden = self.teacher.outputs(inputs, self.asks()), None
        return Expected(outputs, seen_in(outputs, theirs), hidden)

    def __call__(
        self, outputs: Any, inputs: Mapping[str, Any], seen: Mapping[str, Any] | None = None, progress: float = 1.0
    ) -> dict[str, Term]:
        """Return the teacher's terms by name.

        Args:
            outputs: of the student: a mapping or a tuple, with logits (batch, classes) or (batch, length, classes), or
                `start_logits` and `end_logits` (batch, length).
            inputs: the batch, with or without labels.
            seen: what the context gave.
            progress: how much of training is done, 0-1.

        Raises:
            TeacherError: if the teacher's logits are missing or have another shape, or layers cannot be compared.
        """
        batch = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        expected = self.expect(inputs)
        terms: dict[str, Term] = {}
        if self.config.logit_weight > 0:
            total, count = self._logit_term(outputs, expected.outputs, batch, progress)
            terms["distillation_loss"] = Term(self.config.logit_weight, total, count)
        return terms | self.layer_terms(outputs, seen, expected, batch)

    def layer_terms(
        self, outputs: Any, seen: Mapping[str, Any] | None, expected: Expected, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, Term]:
        """Return the terms that compare layers, by name."""
        if self.knowledge is None:
            return {}
        found = self.knowledge(seen_in(outputs, seen or {}), expected.seen, batch)
        return {
            name: Term(getattr(self.config, name.split("_")[0] + "_weight"), *rest) for name, rest in found.items()
        }

    def divergence_at(self, progress: float) -> Divergence:
        """Return the divergence with its options; `progress` is how much of training is done, 0-1."""
        return functools.partial(self._divergence, progress=progress) if self._follows_progress else self._divergence

    def agreement(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return how many predictions of student and teacher are the same, and how many there are, float32 (2,).

        Of several independent labels, the share that is the same counts; of spans, both ends must be.

        Raises:
            ConfigError: for regression, where nothing is ever the same.
        """
        batch = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        expected, positions = self.teacher.outputs(inputs), valid_positions(batch, self.alignment)
        kind = outputs_of(self.student, batch.get("labels"))
        if kind == NUMBERS:
            raise ConfigError("DistillationConfig: measure_agreement is for classes; leave it out for regression")
        if self.alignment == SPANS:
            mask = batch.get("attention_mask")
            best = [
                [span_logits(o[name], mask).argmax(-1) for name in ("start_logits", "end_logits")]
                for o in (outputs, expected)
            ]
            same = (best[0][0] == best[1][0]) & (best[0][1] == best[1][1])
        else:
            ours, theirs = self._logits(outputs, expected)
            shared = min(ours.shape[-1], theirs.shape[-1])
            ours, theirs = ours[..., :shared], theirs[..., :shared].to(ours.device)
            same = ((ours > 0) == (theirs > 0)).float().mean(-1)
            same = same if kind == SIGMOID else ours.argmax(-1) == theirs.argmax(-1)
        return torch.stack([(same * positions).sum(), positions.sum()]).float()

    def _logits(self, outputs: Any, expected: Any) -> tuple[torch.Tensor, torch.Tensor]:
        student_logits, teacher_logits = logits_of(outputs), logits_of(expected)
        if teacher_logits is None or student_logits is None:
            raise TeacherError(
                f"the {'teacher' if teacher_logits is None else 'student'} returned no logits; load it with the head "
                "of the task (an AutoModelFor... class), or set logit_weight=0"
            )
        if self._order is not None:
            teacher_logits = teacher_logits[..., self._order.to(teacher_logits.device)]
        # One number a sample is a column of them.
        is_flat = self.alignment == ROWS and student_logits.dim() == teacher_logits.dim() == 1
        return (student_logits[:, None], teacher_logits[:, None]) if is_flat else (student_logits, teacher_logits)

    def _logit_term(
        self, outputs: Any, expected: Any, inputs: Mapping[str, torch.Tensor], progress: float
    ) -> tuple[torch.Tensor, int]:
        divergence = self.divergence_at(progress)
        positions = valid_positions(inputs, self.alignment)
        if self.alignment == SPANS:
            return self._spans(outputs, expected, inputs, positions, divergence)
        if isinstance(expected, Mapping) and "sparse" in expected:
            return self._sparse_term(logits_of(outputs), expected, positions)
        student_logits, teacher_logits = self._logits(outputs, expected)
        self._check_shapes(positions, student_logits, teacher_logits)
        kind = outputs_of(self.student, inputs.get("labels"))
        return divergence_term(divergence, student_logits, teacher_logits, positions, self.config.temperature, kind)

    def _require_cache_fits(self) -> None:
        teacher, config = self.teacher, self.config
        weights = ("hidden_weight", "attention_weight", "relation_weight", "gram_weight")
        asked = [name for name in weights if getattr(config, name) > 0]
        if asked and isinstance(teacher, CachedTeacher):
            raise ConfigError(f"DistillationConfig: {asked[0]} needs the teacher itself; a cache has its logits only")
        if not isinstance(teacher, CachedTeacher) or not teacher.is_sampled:
            return
        if config.divergence not in ("forward_kl", "soft_cross_entropy"):
            raise ConfigError(
                f"DistillationConfig: divergence {config.divergence!r} needs all probabilities, the cache has some; "
                "take forward_kl, or a cache with a top_k as large as the vocabulary"
            )
        if config.temperature != teacher.settings["temperature"]:
            raise ConfigError(
                f"DistillationConfig: temperature is {config.temperature:g}, the cache was made at "
                f"{teacher.settings['temperature']:g}; its probabilities hold there only"
            )

    def _sparse_term(
        self, student_logits: torch.Tensor | None, expected: Any, positions: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        if student_logits is None:
            raise TeacherError("the student returned no logits; load it with the head of the task")
        rows, with_entropy = student_logits[positions], self.config.divergence == "soft_cross_entropy"
        target = sparse_rows(expected, positions).within(rows.shape[-1])
        return sparse_divergence(rows, target, self.config.temperature, with_entropy), len(rows)

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
