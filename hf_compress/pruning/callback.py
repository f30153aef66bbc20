"""`PruningCallback`: gradual pruning in any Trainer, without subclassing.

Level: glue. The callback itself holds no state: everything is a function of the step and of the pruner.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_compress.errors import UnsupportedError
from hf_compress.pruning.checkpoint import STATE_FILE, load_pruning_state, save_pruning_state
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner
from hf_compress.pruning.schedules import SawTooth
from hf_compress.training.diverged import DivergenceGuard
from hf_compress.training.restore import RestoreWeights

logger = logging.getLogger(__name__)


class PruningCallback(RestoreWeights):
    """Prunes the model of the Trainer that it is added to.

    `Trainer(..., callbacks=[PruningCallback(PruningConfig(sparsity=0.8))])`. Masks are saved into each checkpoint and
    read back on resume; the best checkpoint and early stopping consider only steps at the final sparsity.

    Args:
        pruning: what to prune, how far and when; or the pruner that does it.
        saves: whether it puts the masks into checkpoints; False where the Trainer does so itself.
    """

    def __init__(self, pruning: PruningConfig | Pruner, *, saves: bool = True) -> None:
        super().__init__()
        self._saves = saves
        self._saved: int | None = None
        # Elsewhere the Trainer has one.
        self._guard = DivergenceGuard(lambda: [STATE_FILE]) if saves else None
        self.pruner = pruning if isinstance(pruning, Pruner) else Pruner(pruning)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the targets, place the schedule and, on resume, read the masks back."""
        refuse_sharding(args)
        if model is None:
            raise UnsupportedError("the Trainer gave the callback no model, so there is nothing to prune")
        refuse_other_scheduler(self.pruner, kwargs.get("lr_scheduler"))
        super().on_train_begin(args, state, control, model, **kwargs)
        self.pruner.attach(model)
        self.pruner.start(state.max_steps)
        folder = self.resumed_from(args, state)
        if folder is None:
            self.pruner.step(0)
        else:
            load_pruning_state(self.pruner, folder)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take in the gradients, which are synchronised and clipped."""
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and not args.max_grad_norm:
            # Clipping has unscaled the fp16 gradients already, where there is any.
            scaler.unscale_(optimizer.optimizer)
        self.pruner.before_step(state.global_step + 1, skip_infinite=scaler is not None)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Prune after the optimizer step, before anything is logged, evaluated or saved."""
        if self._guard is not None:
            self._guard.on_step_end(args, state, control, **kwargs)
        self.pruner.step(state.global_step, optimizer)
        if not self.pruner.is_final(state.global_step - 1):
            # What was looked at before this step was denser, so it is no candidate for the best one; without a best so
            # far, early stopping does not count.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        self._save_early(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the weights and write the masks if a checkpoint is due."""
        if self._guard is not None:
            self._guard.on_epoch_end(args, state, control, **kwargs)
        self._save_early(args, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the masks if a checkpoint is due."""
        self._save_early(args, state, control)

    def _save_early(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Put the masks where the checkpoint will be: when `on_save` is called, the one before is gone already."""
        self._saved = None
        if not self._saves or not control.should_save or control.should_evaluate or state.is_hyper_param_search:
            # An evaluation comes first, and a folder without weights should not be there meanwhile.
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            folder.mkdir(parents=True, exist_ok=True)
        save_pruning_state(self.pruner, folder, write=state.is_world_process_zero)
        self._saved = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add sparsity and schedule to the training log."""
        if logs is not None and "loss" in logs and "sparsity" not in logs:
            logs.update(self.logs(state.global_step))
            if state.log_history:
                state.log_history[-1].update(self.logs(state.global_step))

    def logs(self, step: int) -> dict[str, float]:
        """Return what the Trainer's log shows of pruning after `step` optimizer steps."""
        target = self.pruner.target(step)
        return {"sparsity": self.pruner.sparsity} | ({} if target is None else {"target_sparsity": target})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the masks into the checkpoint that was just written, if they are not there yet."""
        if not self._saves or self._saved == state.global_step:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # Where parameters are sharded each process has a part to give.
        save_pruning_state(self.pruner, folder, write=state.is_world_process_zero and folder.is_dir())

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Make sure that the weights have the zeros that were asked for."""
        super().on_train_end(args, state, control, model, **kwargs)
        if self._guard is not None:
            self._guard.check(args, state, model)
        self.pruner.check()
        self.pruner.store.release()
        if not self.pruner.is_final(state.global_step):
            logger.warning(
                "training stopped at step %d of %d, at sparsity %.4f, before the last mask; resume it to finish",
                state.global_step,
                state.max_steps,
                self.pruner.sparsity,
            )


@contextmanager
def released(pruner: Pruner | None) -> Iterator[None]:
    """Leave gradients of zeroed weights alone again when the block ends, also where training was broken off."""
    try:
        yield
    finally:
        if pruner is not None:
            pruner.store.release()


def refuse_sharding(args: TrainingArguments) -> None:
    """Raise if the Trainer shards parameters in a way that pruning cannot handle.

    Raises:
        UnsupportedError: for DeepSpeed, FSDP version 1 and sharded checkpoints.
    """
    if args.deepspeed:
        raise UnsupportedError(
            "DeepSpeed ZeRO keeps flattened copies of the weights in its optimizer and writes them back after each "
            "step, so zeros do not stay and gradients cannot be seen; prune under DistributedDataParallel or FSDP 2"
        )
    plugin = getattr(args, "fsdp_plugin_args", None) or {}
    if args.fsdp and "SHARDED" in str(plugin.get("state_dict_type", "")).upper():
        raise UnsupportedError(
            "state_dict_type SHARDED_STATE_DICT writes no safetensors whose zeros could be checked; set fsdp_config="
            '{"state_dict_type": "FULL_STATE_DICT"}'
        )
    if args.fsdp and int(plugin.get("fsdp_version", 1)) < 2:
        raise UnsupportedError(
            "FSDP version 1 joins many weights in one flat parameter, so single weights cannot be ranked; set "
            'fsdp_config={"version": 2}, or train under DistributedDataParallel'
        )


def refuse_other_scheduler(pruner: Pruner, scheduler: Any) -> None:
    """Raise if the learning rate shall be rewound and `scheduler` does not do it.

    Raises:
        UnsupportedError: naming who does.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    if pruner.config.lr_rewind is not None and not any(
        isinstance(f, SawTooth) for f in getattr(inner, "lr_lambdas", ())
    ):
        raise UnsupportedError(
            "lr_rewind needs the Trainer to make the scheduler: use PruningTrainer, CompressionTrainer or "
            "CompressionMixin, and pass no scheduler of your own"
        )
