"""Projections between the widths of student and teacher, trained beside the student.

Level: glue. They are in the optimizer and in checkpoints, and never in the model or what is saved of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from hf_compress.errors import CheckpointError, UnsupportedError

STATE_FILE = "distillation_state.safetensors"


class ProjectionCallback(TrainerCallback):
    """Keeps projections in step over processes, checkpoints and resumption.

    Args:
        projections: at least one; moved to the device of training.
        restore: the callback that knows which checkpoint a run resumes from.
    """

    def __init__(self, projections: nn.ModuleDict, restore: Any) -> None:
        self.projections = projections
        self._restore = restore

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer` train the projections, without weight decay, once."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        fresh = [p for p in self.projections.parameters() if id(p) not in known]
        if fresh:
            optimizer.add_param_group({"params": fresh, "weight_decay": 0.0})

    def save(self, folder: str | Path) -> None:
        """Write the projections into a checkpoint folder, whole or not at all."""
        from safetensors.torch import save_file

        part = Path(folder) / (STATE_FILE + ".part")
        save_file({n: t.detach().cpu().contiguous() for n, t in self.projections.state_dict().items()}, part)
        os.replace(part, Path(folder) / STATE_FILE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the projections of the checkpoint that the run resumes from."""
        folder = self._restore.resumed_from(args, state)
        if folder is not None:
            self._load(folder)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Average the gradients over processes, as DistributedDataParallel does with those of the model."""
        if args.world_size == 1:
            return
        import torch.distributed

        for parameter in self.projections.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= args.world_size

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the gradients; the Trainer does so with those of the model only."""
        self.projections.zero_grad()

    def _load(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.projections.load_state_dict(load_file(folder / STATE_FILE))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"the projections in {folder.name} cannot be read ({error}); resume with the same options and "
                "teacher, or from another checkpoint"
            ) from error


def projection_callback(trainer: Any, projections: nn.ModuleDict, restore: Any) -> ProjectionCallback:
    """Place `projections` beside the model of `trainer`.

    Raises:
        UnsupportedError: under FSDP and DeepSpeed, whose optimizers take parameters of the model only.
    """
    if trainer.args.fsdp or trainer.args.deepspeed:
        raise UnsupportedError(
            "hidden_weight between different widths trains projections outside the model, which FSDP and DeepSpeed "
            "cannot; use relation_weight or gram_weight, or train under DistributedDataParallel"
        )
    return ProjectionCallback(projections.to(trainer.args.device), restore)
