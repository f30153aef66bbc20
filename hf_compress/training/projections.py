"""Parameters trained beside the model, such as projections between the widths of student and teacher.

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


class SideCallback(TrainerCallback):
    """Keeps modules beside the model in step over processes, checkpoints and resumption.

    Args:
        modules: on the device of training.
        restore: the callback that knows which checkpoint a run resumes from.
        file: name of their file in a checkpoint.
        what: they are called in messages.
    """

    def __init__(self, modules: nn.ModuleDict, restore: Any, file: str, what: str) -> None:
        self.modules = modules
        self.file = file
        self._restore = restore
        self._what = what

    @property
    def has_state(self) -> bool:
        """Say whether there is anything to keep in checkpoints."""
        return bool(self.modules.state_dict())

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Let `optimizer` train the parameters, without weight decay, once."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        fresh = [p for p in self.modules.parameters() if id(p) not in known]
        if fresh:
            optimizer.add_param_group({"params": fresh, "weight_decay": 0.0})

    def save(self, folder: str | Path) -> None:
        """Write their state into a checkpoint folder, whole or not at all."""
        if not self.has_state:
            return
        from safetensors.torch import save_file

        part = Path(folder) / (self.file + ".part")
        save_file({n: t.detach().cpu().contiguous() for n, t in self.modules.state_dict().items()}, part)
        os.replace(part, Path(folder) / self.file)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the state in the checkpoint that the run resumes from."""
        # Of a step that an error cut off, as the Trainer forgets those of the model.
        self.modules.zero_grad()
        folder = self._restore.resumed_from(args, state)
        if folder is not None:
            self.load(folder)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Average the gradients over processes, as DistributedDataParallel does with those of the model."""
        if args.world_size == 1:
            return
        import torch.distributed

        for parameter in self.modules.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= args.world_size

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the gradients; the Trainer does so with those of the model only."""
        self.modules.zero_grad()

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, or of other modules.
        """
        if not self.has_state:
            return
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.modules.load_state_dict(load_file(Path(folder) / self.file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"the {self._what} in {Path(folder).name} cannot be read ({error}); resume with the same options and "
                "models, or from another checkpoint"
            ) from error


def projection_callback(trainer: Any, projections: nn.ModuleDict, restore: Any) -> SideCallback:
    """Place `projections` beside the model of `trainer`.

    Raises:
        UnsupportedError: under FSDP and DeepSpeed, whose optimizers take parameters of the model only.
    """
    if trainer.args.fsdp or trainer.args.deepspeed:
        raise UnsupportedError(
            "hidden_weight between different widths trains projections outside the model, which FSDP and DeepSpeed "
            "cannot; use relation_weight or gram_weight, or train under DistributedDataParallel"
        )
    return SideCallback(projections.to(trainer.args.device), restore, STATE_FILE, "projections")
