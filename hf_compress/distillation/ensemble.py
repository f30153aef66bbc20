"""Several teachers as one: their terms, weighted and added.

Level: state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.distillation.chunked import ChunkLoss, by_autograd, cross_entropy_and_kl
from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.head import LanguageHead, require_rows
from hf_compress.distillation.objective import DistillationObjective, Expected, Term
from hf_compress.distillation.reduce import divergence_of_rows
from hf_compress.distillation.teacher import Teacher, load_teacher_model
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
        for e in expected:
            require_rows(e.hidden, positions, "teacher")
        hidden = [e.hidden[positions.to(e.hidden.device)] for e in expected]  # type: ignore[index,union-attr]
        config, heads = self.config, [o.teacher.head for o in self.objectives]
        task_weight = config.task_weight if labels is not None else 0.0

        def theirs(rows: slice, device: torch.device) -> Iterator[tuple[float, torch.Tensor]]:
            for share, head, states in zip(self.weights, heads, hidden, strict=True):
                # Not inside `yield`: whoever takes the value goes on with gradients.
                with torch.no_grad():
                    logits = head.logits(states[rows]).to(device)
                yield share, logits

        def by_formula(logits: torch.Tensor, rows: slice) -> Any:
            return cross_entropy_and_kl(
                logits,
                None if labels is None else labels[rows],
                theirs(rows, logits.device),
                task_weight=task_weight,
                logit_weight=config.logit_weight,
                temperature=config.temperature,
                smoothing=smoothing,
                with_entropy=config.divergence == "soft_cross_entropy",
            )

        def by_definition(logits: torch.Tensor, rows: slice) -> Any:
            task = divergence = logits.sum() * 0.0
            if labels is not None:
                task = F.cross_entropy(logits, labels[rows], reduction="sum", label_smoothing=smoothing)
            for objective, (share, target) in zip(self.objectives, theirs(rows, logits.device), strict=True):
                function = objective.divergence_at(progress)
                total, _ = divergence_of_rows(function, logits, target, config.temperature)
                divergence = divergence + share * total
            return task_weight * task + config.logit_weight * divergence, torch.stack([task, divergence])

        return by_formula if self._has_formula() else by_autograd(by_definition)

    def _has_formula(self) -> bool:
        heads = [o.teacher.head for o in self.objectives] + [LanguageHead(self.objectives[0].student)]
        is_one_size = len({getattr(head.layer, "out_features", head) for head in heads}) == 1
        return self.config.divergence in ("forward_kl", "soft_cross_entropy") and is_one_size

    def _mean(self, terms: Sequence[Mapping[str, Term]]) -> dict[str, Term]:
        found: dict[str, Term] = {}
        for share, of_one in zip(self.weights, terms, strict=True):
            for name, term in of_one.items():
                before = found[name].total if name in found else 0.0
                found[name] = Term(term.weight, before + share * term.total, term.count, term.counted)
        return found


def make_objective(
    config: DistillationConfig,
    teachers: TeacherSource | Sequence[TeacherSource],
    student: nn.Module,
    device: torch.device | str | None = None,
) -> TeacherEnsemble:
    """Load and place the teachers, and check each against `student`.

    Raises:
        ConfigError: for options that do not go together.
        TeacherError: if a teacher and the student do not fit together.
    """
    sources = [teachers] if isinstance(teachers, (nn.Module, str, Path)) else list(teachers)
    if not sources:
        raise ConfigError("teacher is an empty list; give at least one model, folder or Hub id")
    models = [s if isinstance(s, nn.Module) else load_teacher_model(s) for s in sources]
    objectives = [DistillationObjective(config, Teacher(m, device), student) for m in models]
    return TeacherEnsemble(objectives, config.teacher_weights)
