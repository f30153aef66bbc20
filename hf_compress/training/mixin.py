"""`CompressionMixin`: distillation and pruning for any Trainer class, on its public methods only.

Level: glue. With `compression=None` every method hands over to the Trainer below unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from hf_compress.config import CompressionConfig
from hf_compress.distillation.ensemble import TeacherEnsemble, TeacherSource
from hf_compress.output import full_disk_explained
from hf_compress.pruning.callback import PruningCallback, refuse_sharding, released
from hf_compress.pruning.checkpoint import STATE_FILE as PRUNING_STATE
from hf_compress.pruning.checkpoint import save_pruning_state
from hf_compress.pruning.pruner import Pruner
from hf_compress.quantization.bnb import protect_4bit
from hf_compress.training.agreement import TeacherAgreement
from hf_compress.training.attach import attach
from hf_compress.training.checkpoint import checkpoint_to_resume, save_checksums
from hf_compress.training.diverged import DivergenceGuard
from hf_compress.training.finished import save_compressed
from hf_compress.training.projections import SideCallback
from hf_compress.training.publish import check_saved_zeros, push_trainer, start_record, write_card
from hf_compress.training.restore import RestoreWeights
from hf_compress.training.setup import (
    check_arguments,
    check_model,
    push_without_training_state,
    refuse_empty,
    refuse_scheduler,
)

# For type checkers the mixin is a Trainer; at run time it stands before whichever Trainer it is mixed into.
_Base = Trainer if TYPE_CHECKING else object


class CompressionMixin(_Base):  # type: ignore[misc,valid-type]
    """Adds `compression=` and `teacher=` to a Trainer: `class MyTrainer(CompressionMixin, SFTTrainer): ...`.

    Args:
        *args: of the Trainer below.
        compression: what to do; None leaves the Trainer as it is.
        teacher: a model, a folder or a Hub id, or a list of these; for `compression.distillation`, which needs it or
            a cache.
        unlabeled_dataset: rows on which only the teacher's terms count, mixed in by `distillation.unlabeled_ratio`.
        **kwargs: of the Trainer below.

    Raises:
        ConfigError: if `compression` and `teacher` do not go together.
        TeacherError: if teacher and student do not fit together.
        TargetError, ArchitectureError: if there is nothing to prune in this model.
        UnsupportedError: for a task or a sharding that this version cannot handle.
    """

    def __init__(
        self,
        *args: Any,
        compression: CompressionConfig | None = None,
        teacher: TeacherSource | Sequence[TeacherSource] | None = None,
        unlabeled_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(compression, teacher, unlabeled_dataset)
        self.compression = compression
        self.pruner: Pruner | None = None
        self._objective: TeacherEnsemble | None = None
        self._pruning_callback: PruningCallback | None = None
        self._sides: list[SideCallback] = []
        self._agreement: TeacherAgreement | None = None
        super().__init__(*args, **kwargs)
        if compression is None:
            return
        check_model(self.model, compression, self.args.push_to_hub)
        protect_4bit(self.model)
        if compression.pruning is not None:
            refuse_sharding(self.args)
            self.pruner = Pruner(compression.pruning)
            # Fails now, before training, if there is nothing to prune; on_train_begin attaches again.
            self.pruner.attach(self.model)
            self._pruning_callback = PruningCallback(self.pruner, saves=False)
        self._guard = DivergenceGuard(lambda: self.checkpoint_files, lambda: self._loss.wrong_terms())
        self.add_callback(self._guard)
        self._restore = self._pruning_callback or RestoreWeights()
        self.add_callback(self._restore)
        self._attach = functools.partial(attach, self, teacher, unlabeled_dataset, self._restore)
        self._follow_model()
        refuse_scheduler(self, self._sides)
        self._start_record = start_record(self)
        push_without_training_state(self)

    def _follow_model(self) -> None:
        for side in self._sides:
            self.remove_callback(side)
        self._objective, self._agreement, self._sides, self._loss = self._attach(self._objective)
        for side in self._sides:
            self.add_callback(side)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Call `model_init`; teachers' terms and rounding go over to the model that it returns."""
        model = super().call_model_init(trial)
        if hasattr(self, "_attach"):
            self.model = model
            self._follow_model()
        return model

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer; projections between widths and learned ranges are trained by it too."""
        optimizer = super().create_optimizer(*args, **kwargs)
        for side in self._sides:
            side.add_to(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the scheduler of `TrainingArguments`, or the saw-tooth that `PruningConfig.lr_rewind` asks for."""
        is_theirs = getattr(self, "lr_scheduler", None) is not None
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if self.pruner is not None and self.pruner.config.lr_rewind is not None and not is_theirs:
            rate = self.pruner.plan.learning_rate(num_training_steps, self.args.get_warmup_steps(num_training_steps))
            self.lr_scheduler = scheduler = torch.optim.lr_scheduler.LambdaLR(scheduler.optimizer, rate)
        return scheduler

    # ---- Loss ----

    @property
    def _changes_loss(self) -> bool:
        return self._objective is not None or self.pruner is not None or bool(self._sides)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Collect the micro-batches of one optimizer step and count the items that its loss is divided by."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._changes_loss:
            batches = self._loss.collect(batches, device)
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return task_weight x task loss + logit_weight x T^2 x divergence, normalised over the accumulated batch.

        Each term is a sum over the items of this micro-batch divided by their number in the whole accumulated batch
        over all processes. So batch 8 x 1 equals 2 x 4, also for models whose own loss ignores `num_items_in_batch`.
        Outside training this is the Trainer's loss.
        """
        if not self._changes_loss or not model.training:
            # Label smoothing takes the labels out of the batch that it is given.
            batch, inputs = inputs, self._loss.students(inputs) if self._objective is not None else inputs
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._agreement is not None and return_outputs:
                self._agreement.add(found[1], batch)
            return found
        # Said here and not at construction, since whoever overrides this method computes another loss.
        self.loss_is_scaled_for_ga = True
        loss, outputs = self._loss(super().compute_loss, model, inputs, num_items_in_batch, return_outputs)
        self._guard.see(loss, self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does; with `measure_agreement` the metrics have `teacher_agreement`, 0-1."""
        output = super().evaluation_loop(*args, **kwargs)
        if self._agreement is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            output.metrics.update(self._agreement.drain(prefix))
        return output

    # ---- Log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms of the loss, the sparsity and the schedule added to each training log."""
        if self.compression is not None and "loss" in logs:
            logs.update(self._loss.drain())
            if self._pruning_callback is not None:
                logs.update(self._pruning_callback.logs(self.state.global_step))
        super().log(logs, start_time)

    # ---- Checkpoints ----

    @property
    def checkpoint_files(self) -> list[str]:
        """Names of the files that a checkpoint must have beside the Trainer's own."""
        return [*([PRUNING_STATE] if self.pruner else []), *(side.file for side in self._sides if side.has_state)]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` takes the newest checkpoint that was written completely.

        Raises:
            CheckpointError: if the checkpoint asked for is incomplete.
            DataError: if the training dataset is empty.
            DivergedError: if weights became NaN or infinite; no checkpoint was written of them.
            DiskFullError: if there is no room; the checkpoints before stay.
        """
        if self.compression is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        refuse_empty(self.train_dataset)
        if resume_from_checkpoint:
            needs: dict[str, Any] = {
                "world_size": self.args.world_size,
                "optimizer": not self.args.save_only_model and not self.args.fsdp and not self.args.deepspeed,
                "files": self.checkpoint_files,
            }
            found = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint, **needs)
            self._restore.resume_folder = found
            # With no checkpoint at all, the Trainer's own message.
            resume_from_checkpoint = True if found is None else str(found)
        full_disk = full_disk_explained(
            f"{self.args.output_dir} holds the checkpoints that were whole before; free some space or set "
            "save_total_limit, and train with resume_from_checkpoint=True"
        )
        with full_disk, released(self.pruner):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as the Trainer does; then make sure that the file has the zeros of the masks.

        Raises:
            SparsityError: if the saved weights are not zero where they must be.
            DivergedError: if a checkpoint would hold NaN or infinity; it is not written.
            DiskFullError: if there is no room.
        """
        if self.compression is None:
            return super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = folder.name == f"checkpoint-{self.state.global_step}"
        if is_checkpoint:
            self._guard.check(self.args, self.state, self.model)
        with full_disk_explained(f"{folder} is not whole; free some space and save again"):
            super().save_model(output_dir, _internal_call=True)
        # The states go in before trainer_state.json, which the Trainer writes last.
        for side in self._sides if is_checkpoint and self.args.should_save else ():
            side.save(folder)
        if self.pruner is not None and is_checkpoint:
            # Resuming checks masks against weights.
            save_pruning_state(self.pruner, folder, write=self.args.should_save)
        elif self.pruner is not None:
            model = self.accelerator.unwrap_model(self.model)
            check_saved_zeros(self.pruner, model, folder, self.args.should_save)
        if is_checkpoint and self.args.should_save:
            save_checksums(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_compressed(self, output_dir: str | Path) -> dict[str, Path]:
        """Write the finished model: whole units that were pruned are removed, then it is quantized if so configured.

        Args:
            output_dir: folder to make; it must not exist or be empty.

        Returns:
            Folders by name: "model" (plain, 16 or 32 bit) and, with `compression.quantization`, "quantized"; of an
            adapter on a quantized model "adapter" alone, of a plain module "model" with its weights alone.

        Raises:
            OutputExistsError: if `output_dir` already holds something.
        """
        return save_compressed(self, output_dir)

    # ---- Hub ----

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md with what this run measured; takes what the Trainer's method takes."""
        if self.compression is None:
            return super().create_model_card(*args, **kwargs)
        return write_card(self, *args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, write the card and upload the output folder in one commit, without any pickle or training state.

        Takes what the Trainer's method takes; `kwargs` go to `create_model_card`.

        Raises:
            PushRefusedError: if the folder holds something that must not leave this machine.
            HubError: if the Hub does not take it.
        """
        if self.compression is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        options = {"commit_message": commit_message, "token": token, "revision": revision, "private": private}
        return push_trainer(self, options, blocking=blocking, **kwargs)
