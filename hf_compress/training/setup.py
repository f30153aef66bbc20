"""What is checked and set before a run.

Level: glue.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sized
from typing import Any

from hf_compress.config import CompressionConfig
from hf_compress.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def check_arguments(compression: Any, teacher: Any, unlabeled_dataset: Any = None) -> None:
    """Make sure that `compression`, `teacher` and `unlabeled_dataset` go together.

    Raises:
        ConfigError: if they do not.
    """
    if compression is not None and not isinstance(compression, CompressionConfig):
        raise ConfigError(
            f"compression must be a CompressionConfig (CompressionConfig.from_dict reads plain data), found "
            f"{type(compression).__name__}"
        )
    distillation = compression.distillation if compression is not None else None
    distils = distillation is not None
    if distillation is not None and teacher is None and not distillation.cache:
        raise ConfigError(
            "distillation needs a teacher: pass teacher= a model, a folder or a Hub id, or make a cache of one"
        )
    if unlabeled_dataset is not None and not distils:
        raise ConfigError("unlabeled_dataset is for the teacher's terms, and compression has no distillation")
    if teacher is not None and not distils:
        raise ConfigError("a teacher was given, but compression has no distillation: add DistillationConfig()")


def keep_training_state_home(trainer: Any) -> None:
    """Turn off the background pushes of a Trainer, which upload pickles."""
    from transformers.trainer_utils import HubStrategy

    if trainer.args.push_to_hub and trainer.args.hub_strategy != HubStrategy.END:
        logger.warning(
            "hub_strategy=%r uploads pickles (training_args.bin) in the background while training; this run pushes "
            "at the end instead (hub_strategy='end')",
            trainer.args.hub_strategy.value,
        )
        trainer.args = copy.copy(trainer.args)
        trainer.args.hub_strategy = HubStrategy.END


def refuse_empty(dataset: Any) -> None:
    """Raise if there is nothing to train on.

    Raises:
        DataError: if `dataset` has a length, and it is 0.
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise DataError("the training dataset is empty; expected at least one row")
