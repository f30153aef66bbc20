"""Training of a candidate with the whole model as its teacher, for a given time.

Level: outside.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from hf_compress.recipes.progress import ProgressLines, StepClock
from hf_compress.search.config import BudgetConfig

# The first steps also set things up. Texts come grouped by length, in rounds of 50 batches from long to short.
_FIRST_STEPS, _PROBED_STEPS = 4, 54
# Of the time, at most so much goes into finding out how many steps fit into it.
_SHARE_OF_PROBE = 0.1


def steps_in(seconds: float, model: Any, teacher: Any, task: Any, work: Path, config: BudgetConfig) -> int:
    """Return how many steps of training take so long, by some that are timed on a copy; at least 1."""
    trainer = _trainer(copy.deepcopy(model), teacher, task, work / "probe", config, _PROBED_STEPS)
    clock = StepClock(_FIRST_STEPS, _SHARE_OF_PROBE * seconds)
    trainer.add_callback(clock)
    trainer.train()
    return max(1, int(seconds / max(clock.seconds, 1e-6)))


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
        **{**fast_arguments(), **_grouping(task), **task.arguments},
    )
    distillation = DistillationConfig(temperature=2.0, task_weight=0.1, logit_weight=0.9)
    given = {**task.for_trainer(), "eval_dataset": None}
    trainer = task.trainer_class(
        model, arguments, compression=CompressionConfig(distillation), teacher=teacher, **given
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _grouping(task: Any) -> dict[str, Any]:
    """Return the arguments by which texts of like length share a batch, which saves padding."""
    columns = getattr(task.rows["train"], "column_names", None) or ()
    # Older versions of transformers have no such argument.
    names = {field.name for field in dataclasses.fields(task.arguments_class)}
    has_texts = "input_ids" in columns and "train_sampling_strategy" in names
    return {"train_sampling_strategy": "group_by_length"} if has_texts else {}
