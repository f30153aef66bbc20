"""Several teachers as one: their terms, weighted and added.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.objective import DistillationObjective, Term
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
        found: dict[str, Term] = {}
        for objective, share in zip(self.objectives, self.weights, strict=True):
            for name, term in objective(outputs, inputs, seen, progress).items():
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
