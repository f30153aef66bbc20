"""Several teachers as one: their terms, weighted and added.

Level: state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.distillation.alignment import input_names
from hf_compress.distillation.cached import CachedTeacher
from hf_compress.distillation.chunked import ChunkLoss, by_autograd
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.formula import TermWeights, cross_entropy_and_kl
from hf_compress.distillation.head import LanguageHead
from hf_compress.distillation.losses import Divergence
from hf_compress.distillation.objective import DistillationObjective, Expected, Term
from hf_compress.distillation.reduce import divergence_of_rows
from hf_compress.distillation.sparse import SparseRows, sparse_divergence
from hf_compress.distillation.teacher import LABELS, Teacher, load_teacher_model
from hf_compress.distillation.tokens import check_vocabularies, vocabulary, vocabulary_of_source
from hf_compress.errors import ConfigError

# A model, a folder or a Hub id.
TeacherSource: TypeAlias = nn.Module | str | Path


class TeacherEnsemble:
    """Adds up what several objectives say of the same student.

    The gradient of the weighted sum of forward KLs is that of the KL from the weighted mean of the teachers'
    probabilities.

    Args:
        objectives: one for each teacher, of the same student and config.
        weights: one for each teacher, at least 0, scaled to a sum of 1; () for equal ones.

    Raises:
        ConfigError: if there is not one weight for each teacher, or none is positive.
    """

    def __init__(self, objectives: Sequence[DistillationObjective], weights: Sequence[float] = ()) -> None:
        weights = list(weights) or [1.0] * len(objectives)
        if len(weights) != len(objectives) or min(weights) < 0 or not sum(weights) > 0:
            raise ConfigError(
                f"teacher_weights must be one number of at least 0 for each of the {len(objectives)} teachers, and "
                f"one above 0; found {list(weights)}"
            )
        self.objectives = list(objectives)
        self.weights = [w / sum(weights) for w in weights]
        self.config = objectives[0].config
        self.projections = nn.ModuleDict(
            {
                str(i): o.knowledge.projections
                for i, o in enumerate(objectives)
                if o.knowledge and o.knowledge.projections
            }
        )

    @functools.cached_property
    def teachers_own(self) -> set[str]:
        """Names of inputs that a teacher takes and the student does not, such as `token_type_ids` of BERT alone."""
        student = self.objectives[0].student
        if getattr(student, "config", None) is None:
            # A plain module may take all of them as they come.
            return set()
        return set[str]().union(*(o.teacher.accepts for o in self.objectives)) - input_names(student) - LABELS

    def asks(self) -> dict[str, bool]:
        """Return what the forward call of the student must be given beside its inputs."""
        return self.objectives[0].asks()

    def watching(self) -> Any:
        """Return the context in which the student must run; its value goes into the call below."""
        return self.objectives[0].watching()

    def __call__(
        self, outputs: Any, inputs: Mapping[str, Any], seen: Mapping[str, Any] | None = None, progress: float = 1.0
    ) -> dict[str, Term]:
        """Return the terms by name, each the weighted mean over the teachers; arguments as `DistillationObjective`."""
        return self._mean([objective(outputs, inputs, seen, progress) for objective in self.objectives])

    def layer_terms(
        self, outputs: Any, seen: Any, expected: Sequence[Expected], batch: Mapping[str, torch.Tensor]
    ) -> dict[str, Term]:
        """Return the terms that compare layers, by name; `expected` is what each teacher's objective expects."""
        pairs = zip(self.objectives, expected, strict=True)
        return self._mean([objective.layer_terms(outputs, seen, e, batch) for objective, e in pairs])

    def agreement(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Return (same, all) predictions of the student and each teacher, weighted, shape (2,)."""
        found = [o.agreement(outputs, inputs) for o in self.objectives]
        return torch.stack([share * f for share, f in zip(self.weights, found, strict=True)]).sum(0)

    def chunk_loss(
        self,
        expected: Sequence[Expected],
        positions: torch.Tensor,
        labels: torch.Tensor | None,
        progress: float,
        smoothing: float = 0.0,
    ) -> ChunkLoss:
        """Return the loss on logits of a language model, for some rows at a time.

        Args:
            expected: what each teacher's objective expects, chunked.
            positions: bool (batch, length), which rows count.
            labels: int64 (rows that count,); None for the teachers' terms alone.
            progress: how much of training is done, 0-1.
            smoothing: of the labels, 0-1.

        Returns:
            As `chunked.ChunkLoss`; the numbers beside the loss are the sums of the task's loss and of the divergence.
        """
        pairs = zip(self.objectives, self.weights, expected, strict=True)
        theirs = [(share, o.divergence_at(progress), o.teacher.rows(e.hidden, positions)) for o, share, e in pairs]
        config = self.config
        with_entropy = config.divergence == "soft_cross_entropy"
        weights = TermWeights(config.task_weight, config.logit_weight, config.temperature, smoothing, with_entropy)
        terms = _ChunkTerms(weights, theirs, labels)
        return terms.by_formula if self._has_formula() else by_autograd(terms.by_definition)

    def _has_formula(self) -> bool:
        if self.config.divergence not in ("forward_kl", "soft_cross_entropy"):
            return False
        ours = getattr(LanguageHead(self.objectives[0].student).layer, "out_features", None)
        sizes = {o.teacher.classes for o in self.objectives if not o.teacher.is_sampled}
        return ours is not None and sizes <= {ours}

    def _mean(self, terms: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
        found: dict[str, Term] = {}
        for share, of_one in zip(self.weights, terms, strict=True):
            for name, term in of_one.items():
                before = found[name].total if name in found else 0.0
                found[name] = Term(term.weight, before + share * term.total, term.count, term.counted)
        return found


@dataclass(frozen=True)
class _ChunkTerms:
    """The loss on some rows of logits, from what `TeacherEnsemble.chunk_loss` was given."""

    weights: TermWeights
    # Share, divergence, and the function from rows to logits or `SparseRows`.
    teachers: Sequence[tuple[float, Divergence, Callable[[slice], Any]]]
    labels: torch.Tensor | None

    def by_formula(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss, its gradient and both sums, for forward KL and soft cross-entropy."""
        labels = None if self.labels is None else self.labels[rows]
        teachers = ((share, target) for share, _, target in self._targets(logits, rows))
        return cross_entropy_and_kl(logits, labels, teachers, self.weights)

    def by_definition(self, logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and both sums, for any divergence."""
        weights = self.weights
        task = total = logits.sum() * 0.0
        if self.labels is not None:
            task = F.cross_entropy(logits, self.labels[rows], reduction="sum", label_smoothing=weights.smoothing)
        for share, divergence, target in self._targets(logits, rows):
            if isinstance(target, SparseRows):
                part = sparse_divergence(logits, target, weights.temperature, weights.with_entropy)
            else:
                part, _ = divergence_of_rows(divergence, logits, target, weights.temperature)
            total = total + share * part
        return weights.task * task + weights.logit * total, torch.stack([task, total])

    def _targets(self, logits: torch.Tensor, rows: slice) -> Iterator[tuple[float, Divergence, Any]]:
        for share, divergence, target_of in self.teachers:
            found = target_of(rows)
            is_sparse = isinstance(found, SparseRows)
            yield share, divergence, found.within(logits.shape[-1]) if is_sparse else found.to(logits.device)


def make_objective(
    config: DistillationConfig,
    teachers: TeacherSource | Sequence[TeacherSource] | None,
    student: nn.Module,
    device: torch.device | str | None = None,
    processing_class: Any = None,
) -> TeacherEnsemble:
    """Load and place the teachers, or open their cache, and check each against `student`.

    Args:
        config: which terms there are, and how to load a teacher from a folder or a Hub id.
        teachers: models, folders or Hub ids; None if `config.cache` stands for them. With both, the one teacher is
            compared with the cache and let go.
        student: the model in training.
        device: where the teachers go.
        processing_class: the student's tokenizer, compared with those of the teachers.

    Raises:
        ConfigError: for options that do not go together.
        TeacherError: if a teacher and the student do not fit together.
        CheckpointError: if the cache is unfinished, or of another teacher.
    """
    sources = [teachers] if isinstance(teachers, (nn.Module, str, Path)) else list(teachers or [])
    ours = vocabulary(processing_class)
    if config.cache:
        cached = CachedTeacher(config.cache)
        cached.check_source(sources, ours, lambda source: _model(config, source))
        return TeacherEnsemble([DistillationObjective(config, cached, student)])
    if not sources:
        raise ConfigError("teacher is an empty list; give at least one model, folder or Hub id")
    for source in sources:
        if ours is not None:
            check_vocabularies(ours, _vocabulary_of(source))
    objectives = [DistillationObjective(config, Teacher(_model(config, s), device), student) for s in sources]
    return TeacherEnsemble(objectives, config.teacher_weights)


def _vocabulary_of(source: TeacherSource) -> dict[str, int] | None:
    """Return the vocabulary of a teacher's tokenizer, None if it is not known."""
    if not isinstance(source, nn.Module):
        return vocabulary_of_source(source)
    name = getattr(source, "name_or_path", "")
    tokens = vocabulary_of_source(name) if name else None
    config: Any = getattr(source, "config", None)
    size = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    # A model whose vocabulary was cut still says where it came from, but the tokenizer there is not its own.
    return None if tokens and size and max(tokens.values()) >= size else tokens


def _model(config: DistillationConfig, source: TeacherSource) -> nn.Module:
    if isinstance(source, nn.Module):
        return source
    return load_teacher_model(source, config.teacher_precision, config.teacher_device_map)
