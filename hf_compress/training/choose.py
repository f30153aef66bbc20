"""Choosing how much of the loss is the teacher's, on training data put aside.

Level: glue.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainingArguments

from hf_compress.config import CompressionConfig
from hf_compress.distillation.config import DistillationConfig
from hf_compress.errors import ConfigError, DataError
from hf_compress.training.trainer import CompressionTrainer


class ChosenWeight(NamedTuple):
    """What `choose_logit_weight` found.

    Args:
        weight: the best of those tried.
        config: the configuration with it; None where the best is 0, which is training without a teacher.
        losses: loss on the labels of the held-out rows by weight, lower is better.
    """

    weight: float
    config: DistillationConfig | None
    losses: dict[float, float]


def choose_logit_weight(
    model: nn.Module,
    args: TrainingArguments,
    *,
    teacher: Any,
    train_dataset: Any,
    distillation: DistillationConfig | None = None,
    weights: Sequence[float] = (0.0, 0.5, 0.9),
    held_out: float = 0.1,
    steps: int = 200,
    **kwargs: Any,
) -> ChosenWeight:
    """Train briefly with each weight of the teacher, and compare on training rows put aside.

    Distillation is no free quality: a teacher that knows no more than the labels, or has learnt them by heart, makes
    the student worse. Weight 0 is training without it.

    Args:
        model: the student; it is left as it is.
        args: of the runs; nothing is saved or reported.
        teacher: as of `DistillationTrainer`.
        train_dataset: with labels and a length; the runs do not see the rows put aside.
        distillation: everything but the weights; the defaults if not given.
        weights: of the teacher, each 0-1; the task has the rest.
        held_out: share of the rows put aside, 0-1, ends excluded.
        steps: of each run, at least 1.
        **kwargs: of the Trainer: collator, tokenizer, ...

    Raises:
        ConfigError: for a weight, share or number of steps out of range.
        DataError: if there are too few rows to put any aside.
    """
    wrong = [w for w in weights if not 0 <= w <= 1]
    if wrong or not weights or not 0 < held_out < 1 or steps < 1:
        raise ConfigError(
            f"expected weights of 0-1, held_out between 0 and 1 and at least one step; found weights={list(weights)}, "
            f"held_out={held_out}, steps={steps}"
        )
    count = round(held_out * len(train_dataset))
    if not 0 < count < len(train_dataset):
        raise DataError(f"held_out={held_out} of {len(train_dataset)} rows leaves none to train on or to compare on")
    order = torch.randperm(len(train_dataset), generator=torch.Generator().manual_seed(args.seed)).tolist()
    parts = [_rows(train_dataset, indices) for indices in (order[count:], order[:count])]
    base = distillation or DistillationConfig()
    configs = {w: dataclasses.replace(base, logit_weight=w, task_weight=1 - w) if w else None for w in weights}
    losses = {w: _held_out_loss(model, args, config, teacher, parts, steps, kwargs) for w, config in configs.items()}
    best = min(losses, key=lambda w: losses[w])
    return ChosenWeight(best, configs[best], losses)


def _held_out_loss(
    model: nn.Module,
    args: TrainingArguments,
    config: DistillationConfig | None,
    teacher: Any,
    parts: Sequence[Any],
    steps: int,
    kwargs: dict[str, Any],
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            args, output_dir=folder, max_steps=steps, save_strategy="no", eval_strategy="no", report_to="none",
            push_to_hub=False, load_best_model_at_end=False,
        )  # fmt: skip
        trainer = CompressionTrainer(
            copy.deepcopy(model),
            short,
            train_dataset=parts[0],
            eval_dataset=parts[1],
            compression=CompressionConfig(config) if config is not None else None,
            teacher=teacher if config is not None else None,
            **kwargs,
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]


def _rows(dataset: Any, indices: list[int]) -> Any:
    select = getattr(dataset, "select", None)
    return select(indices) if select is not None else torch.utils.data.Subset(dataset, indices)
