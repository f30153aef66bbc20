"""The loss of a Trainer that compresses: the task's and the teacher's terms, scaled, added and remembered for the log.

Level: glue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from hf_compress.distillation.ensemble import TeacherEnsemble
from hf_compress.distillation.objective import Term
from hf_compress.training.chunked import chunked_loss
from hf_compress.training.on_policy import StudentWriter, Written
from hf_compress.training.scaling import LossScale
from hf_compress.training.unlabeled import UnlabeledBatches

# Trainer.compute_loss of the class below: (model, inputs, return_outputs, num_items_in_batch).
TaskLoss = Callable[..., Any]


class CompressionLoss:
    """Adds the teacher's terms to the loss of `trainer`, normalised over the whole accumulated batch.

    Args:
        trainer: whose loss it is.
        objective: the teachers' terms; None if the loss is only normalised.
        alignment: of predictions and labels of the model; see `distillation.reduce`.
    """

    def __init__(self, trainer: Any, objective: TeacherEnsemble | None, alignment: str) -> None:
        self.trainer = trainer
        self.objective = objective
        self.scale = LossScale(alignment)
        self._chunked = chunked_loss(trainer, objective, alignment) if objective is not None else None
        self._terms: dict[str, torch.Tensor] = {}
        self._steps: dict[str, set[int]] = {}
        writes = objective is not None and objective.config.on_policy_fraction > 0
        self._writer = StudentWriter(trainer, objective.config) if writes else None  # type: ignore[union-attr]
        self._unlabeled: UnlabeledBatches | None = None
        self._unlabeled_scale = LossScale(alignment)
        self._waiting: list[dict[str, Any]] = []

    def add_unlabeled(self, batches: UnlabeledBatches) -> None:
        """Learn from the teacher on `batches` too, one for each micro-batch."""
        self._unlabeled = batches

    def collect(self, batches: Sequence[Any], device: torch.device) -> list[Any]:
        """Count what the micro-batches of the next optimizer step are divided by, and get unlabelled ones for them.

        Returns:
            The micro-batches, some of them written by the student if so configured.
        """
        args = self.trainer.args
        accelerator = self.trainer.accelerator if args.average_tokens_across_devices and args.world_size > 1 else None
        first = self.trainer.state.global_step * args.gradient_accumulation_steps
        if self._writer is not None:
            batches = [self._writer(batch, first + i) for i, batch in enumerate(batches)]
        self.scale.collect(batches, device, accelerator)
        if self._unlabeled is not None:
            self._waiting = [self._unlabeled(first + i) for i in range(len(batches))]
            self._unlabeled_scale.collect(self._waiting, device, accelerator)
        return list(batches)

    def __call__(
        self,
        task_loss: TaskLoss,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items: Any = None,
        wants_outputs: bool = False,
    ) -> Any:
        """Return the loss of a micro-batch and the outputs of the model, None if nobody has asked for them."""
        if self.objective is None:
            task, outputs, _ = self._run(task_loss, model, inputs, num_items, wants_outputs)
            return self._undo_division(task, num_items), outputs
        with self.trainer.accelerator.autocast():
            is_chunked = self._chunked is not None and not wants_outputs and self._chunked.fits(model, inputs)
        if is_chunked:
            loss, outputs = self._in_chunks(model, inputs, self.scale), None
        else:
            task, outputs, terms = self._run(task_loss, model, inputs, num_items, True)
            loss = 0.0 if task is None else self.objective.config.task_weight * self._logged("task_loss", task)
            loss = loss + self._sum(terms, self.scale)
        if self._waiting:
            loss = loss + self.objective.config.unlabeled_weight * self._on_unlabeled(model, is_chunked)
        return self._undo_division(loss, num_items), outputs

    def students(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a batch without what only a teacher takes."""
        unknown = self.objective.teachers_own if self.objective is not None else ()
        return {name: value for name, value in inputs.items() if name not in unknown}

    def _on_unlabeled(self, model: nn.Module, is_chunked: bool) -> Any:
        if isinstance(model, DistributedDataParallel):
            # The labelled pass has sent the buffers of this step. Older torch, such as 2.6, takes writing them again
            # for a change of what that pass saved for its backward pass, and refuses.
            model.require_forward_param_sync = False
        batch = {k: v.to(self.trainer.args.device) for k, v in self._waiting.pop(0).items()}
        if is_chunked:
            return self._in_chunks(model, batch, self._unlabeled_scale, "unlabeled_")
        _, _, terms = self._run(None, model, batch, None, True)
        return self._sum(terms, self._unlabeled_scale, "unlabeled_")

    def _in_chunks(self, model: nn.Module, inputs: dict[str, Any], scale: LossScale, prefix: str = "") -> Any:
        with self.trainer.accelerator.autocast():
            found = self._chunked(model, inputs, self._has_labels(inputs), self._progress)  # type: ignore[misc]
        if found.task is not None:
            self._logged(f"{prefix}task_loss", scale.part(found.task, found.count))
        self._logged(f"{prefix}distillation_loss", scale.part(found.divergence, found.count))
        return scale.part(found.total, found.count) + self._sum(found.layers, scale, prefix)

    def _sum(self, terms: dict[str, Term], scale: LossScale, prefix: str = "") -> Any:
        loss: Any = 0.0
        for name, term in terms.items():
            loss = loss + term.weight * self._logged(prefix + name, scale.part(term.total, term.count, term.counted))
        return loss

    def wrong_terms(self) -> list[str]:
        """Return the names of the terms that were NaN or infinite here since the last log."""
        return [name for name, value in self._terms.items() if not bool(torch.isfinite(value))]

    def drain(self) -> dict[str, float]:
        """Return the mean of each term over the steps that had it since the last call, over all processes."""
        names, means = list(self._terms), [v.float() / len(self._steps[n]) for n, v in self._terms.items()]
        self._terms, self._steps = {}, {}
        if not names:
            return {}
        stacked = torch.stack(means)
        if self.trainer.args.world_size > 1:
            stacked = self.trainer.accelerator.reduce(stacked, "mean")
        return dict(zip(names, stacked.tolist(), strict=True))

    def _run(
        self, task_loss: TaskLoss | None, model: nn.Module, inputs: dict[str, Any], num_items: Any, wants_outputs: bool
    ) -> Any:
        objective = self.objective
        asked = {**self.students(inputs), **(objective.asks() if objective is not None else {})}
        with objective.watching() if objective is not None else nullcontext() as seen:
            if task_loss is not None and (objective is None or self._has_labels(inputs)):
                task, outputs = self._task(task_loss, model, asked, num_items, wants_outputs)
            else:
                task, outputs = None, model(**asked)
        if objective is None:
            return task, outputs, {}
        with self.trainer.accelerator.autocast():
            return task, outputs, objective(outputs, inputs, seen, self._progress)

    @property
    def _progress(self) -> float:
        return self.trainer.state.global_step / max(1, self.trainer.state.max_steps)

    def _has_labels(self, inputs: Mapping[str, Any]) -> bool:
        return not isinstance(inputs, Written) and any(name in inputs for name in self.trainer.label_names)

    def _task(
        self, task_loss: TaskLoss, model: nn.Module, inputs: dict[str, Any], num_items: Any, wants_outputs: bool
    ) -> Any:
        has_own = self.trainer.compute_loss_func is not None
        local = self.scale.count(inputs)
        # Without num_items_in_batch every model returns the mean over its labels; many (BERT among them) ignore it.
        found = task_loss(model, inputs, wants_outputs, num_items if has_own else None)
        loss, outputs = found if wants_outputs else (found, None)
        if has_own:
            return loss.mean(), outputs
        # A micro-batch without any label has the mean NaN and no gradient.
        mean = torch.where(local > 0, loss.mean(), torch.zeros_like(loss.mean()))
        return self.scale.part(mean * local, local), outputs

    def _logged(self, name: str, value: torch.Tensor) -> torch.Tensor:
        self._terms[name] = self._terms.get(name, 0) + value.detach()
        self._steps.setdefault(name, set()).add(self.trainer.state.global_step)
        return value

    def _undo_division(self, loss: Any, num_items: Any) -> Any:
        """Cancel the division by accumulation steps in transformers before 5.23, which has no switch for it."""
        if hasattr(Trainer, "loss_is_scaled_for_ga"):
            return loss
        trainer = self.trainer
        is_divided = (not trainer.model_accepts_loss_kwargs or num_items is None) and trainer.compute_loss_func is None
        # Outside train() nothing divides, and the Trainer has not set the number yet.
        return loss * getattr(trainer, "current_gradient_accumulation_steps", 1) if is_divided else loss
