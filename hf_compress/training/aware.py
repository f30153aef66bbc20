"""Quantization-aware training in a Trainer.

Level: glue.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_compress.errors import UnsupportedError
from hf_compress.quantization.aware import FakeQuantizer
from hf_compress.training.projections import SideCallback

STATE_FILE = "quantization_state.safetensors"


class AwareCallback(SideCallback):
    """Keeps ranges in step, freezes them late, and puts learned ones into the weights at the end.

    Args:
        quantizer: attached to the model that is trained.
        restore: the callback that knows which checkpoint a run resumes from.
    """

    def __init__(self, quantizer: FakeQuantizer, restore: Any) -> None:
        super().__init__(quantizer.layers, restore, STATE_FILE, "ranges of quantization")
        self.quantizer = quantizer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the state in the checkpoint that the run resumes from."""
        super().on_train_begin(args, state, control, **kwargs)
        self._step(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take in the ranges of this step."""
        self._step(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the ranges of the best checkpoint if that was loaded, and fold learned ones into the weights."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.load(state.best_model_checkpoint)
        self.quantizer.fold()

    def _step(self, args: TrainingArguments, state: TrainerState) -> None:
        reduce = _over_processes if args.world_size > 1 else None
        self.quantizer.step(state.global_step / max(1, state.max_steps), reduce)


def _over_processes(lows: torch.Tensor, highs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch.distributed as dist

    dist.all_reduce(lows, dist.ReduceOp.MIN)
    dist.all_reduce(highs, dist.ReduceOp.MAX)
    return lows, highs


def aware_callback(trainer: Any, restore: Any) -> AwareCallback | None:
    """Let the model of `trainer` train with rounded weights, if `compression.quantization` says `aware`.

    Raises:
        UnsupportedError: for learned ranges under FSDP and DeepSpeed, whose optimizers take parameters of the model
            only.
        ConfigError, QuantizationError: if the scheme cannot be simulated in this model.
    """
    config = trainer.compression.quantization
    if config is None or not config.aware:
        return None
    if config.ranges == "learned" and (trainer.args.fsdp or trainer.args.deepspeed):
        raise UnsupportedError(
            "ranges='learned' trains parameters outside the model, which FSDP and DeepSpeed cannot; take "
            "ranges='observed', or train under DistributedDataParallel"
        )
    quantizer = FakeQuantizer(config)
    quantizer.attach(trainer.model)
    quantizer.layers.to(trainer.args.device)
    return AwareCallback(quantizer, restore)
