"""What a Trainer that compresses keeps beside its model, made anew for each model that `model_init` returns.

Level: glue.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from hf_compress.distillation.alignment import alignment_of
from hf_compress.distillation.ensemble import TeacherEnsemble, make_objective
from hf_compress.training.agreement import TeacherAgreement
from hf_compress.training.aware import aware_callback
from hf_compress.training.loss import CompressionLoss
from hf_compress.training.projections import SideCallback, projection_callback
from hf_compress.training.setup import refuse_reentrant, refuse_zero3
from hf_compress.training.unlabeled import unlabeled_batches

logger = logging.getLogger(__name__)


class Attached(NamedTuple):
    """What belongs to one model.

    Args:
        objective: the teachers' terms; None without distillation.
        agreement: counts what student and teachers predict alike; None if that was not asked for.
        sides: modules that are trained beside the model.
        loss: of the training steps.
    """

    objective: TeacherEnsemble | None
    agreement: TeacherAgreement | None
    sides: list[SideCallback]
    loss: CompressionLoss


def attach(
    trainer: Any, teacher: Any, unlabeled_dataset: Any, restore: Any, before: TeacherEnsemble | None = None
) -> Attached:
    """Make everything that looks into `trainer.model`, but for the pruner, which attaches itself at each training.

    Args:
        trainer: with `compression`.
        teacher: as `CompressionMixin` takes it.
        unlabeled_dataset: rows for the teachers' terms alone; None for none.
        restore: the callback that knows which checkpoint a run resumes from.
        before: of the model before this one, whose teachers are loaded.

    Raises:
        ConfigError, TeacherError, UnsupportedError: as `CompressionMixin`.
    """
    config = trainer.compression.distillation
    objective, agreement, sides = None, None, []
    if config is not None:
        refuse_zero3()
        refuse_reentrant(trainer.args, config)
        if before is not None and not config.cache:
            teacher = [each.teacher.model for each in before.objectives]
        objective = make_objective(config, teacher, trainer.model, trainer.args.device, trainer.processing_class)
        _warn_of_columns(trainer, objective.teachers_own)
        if objective.projections:
            sides.append(projection_callback(trainer, objective.projections, restore))
        if config.measure_agreement:
            agreement = TeacherAgreement(trainer, objective)
    aware = aware_callback(trainer, restore)
    sides += [aware] if aware is not None else []
    loss = CompressionLoss(trainer, objective, alignment_of(trainer.model))
    if unlabeled_dataset is not None and objective is not None:
        more = objective.teachers_own
        loss.add_unlabeled(unlabeled_batches(trainer, unlabeled_dataset, objective.config.unlabeled_ratio, more))
    return Attached(objective, agreement, sides, loss)


def _warn_of_columns(trainer: Any, names: set[str]) -> None:
    """Say which columns the Trainer removes although a teacher takes them."""
    rows = trainer.train_dataset
    columns = getattr(rows, "column_names", None)
    if columns is None and isinstance(rows, (list, tuple)) and rows and isinstance(rows[0], Mapping):
        columns = list(rows[0])
    missed = sorted(names & set(columns or ()))
    if missed and trainer.args.remove_unused_columns:
        logger.warning(
            "the teacher takes %s, which the Trainer removes since the student does not; with "
            "remove_unused_columns=False, and no columns but inputs and labels, the teacher gets it alone",
            ", ".join(missed),
        )
