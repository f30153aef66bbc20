"""Training of a candidate with the whole model as its teacher, for a given time.

Level: outside.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from hf_compress.recipes.progress import ProgressLines
from hf_compress.search.config import BudgetConfig

_PROBED_STEPS = 8


def steps_in(seconds: float, model: Any, teacher: Any, task: Any, work: Path, config: BudgetConfig) -> int:
    """Return how many steps of training take so long, by a few that are timed on a copy; at least 1."""
    trainer = _trainer(copy.deepcopy(model), teacher, task, work / "probe", config, _PROBED_STEPS)
    started = time.monotonic()
    trainer.train()
    return max(1, int(seconds * _PROBED_STEPS / (time.monotonic() - started)))


def train(name: str, model: Any, teacher: Any, task: Any, work: Path, config: BudgetConfig, steps: int) -> Any:
    """Train for some steps, from the last checkpoint if there is one; returns the model.

    Args:
        name: for lines of progress.
        model: trained in place.
        teacher: what it learns from besides the labels.
        task: the data.
        work: folder of checkpoints.
        config: learning rate, batch size and seed.
        steps: of the optimizer.
    """
    from hf_compress.training.checkpoint import last_complete_checkpoint

    trainer = _trainer(model, teacher, task, work, config, steps)
    trainer.add_callback(ProgressLines(name))
    whole = last_complete_checkpoint(work, files=trainer.checkpoint_files)
    trainer.train(resume_from_checkpoint=str(whole or "") or None)
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def _trainer(model: Any, teacher: Any, task: Any, work: Path, config: BudgetConfig, steps: int) -> Any:
    from transformers.trainer_callback import PrinterCallback

    from hf_compress.config import CompressionConfig
    from hf_compress.distillation.config import DistillationConfig
    from hf_compress.recipes.stages import fast_arguments

    arguments = task.arguments_class(
        str(work),
        max_steps=steps,
        per_device_train_batch_size=config.train_batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=max(1, steps // 20),
        seed=config.seed,
        **{**fast_arguments(), **task.arguments},
    )
    distillation = DistillationConfig(temperature=2.0, task_weight=0.1, logit_weight=0.9)
    given = {**task.for_trainer(), "eval_dataset": None}
    trainer = task.trainer_class(
        model, arguments, compression=CompressionConfig(distillation), teacher=teacher, **given
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
