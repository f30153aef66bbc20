"""Ends a run whose weights are no numbers any more, before such a checkpoint takes the place of a good one.

Level: glue. The Trainer leaves such losses out of its log (`logging_nan_inf_filter`), so nobody would see it. A loss
alone is no reason to stop: fp16 training skips such steps, and an infinite loss can have a finite gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.errors import DivergedError
from hf_compress.training.checkpoint import last_complete_checkpoint


class DivergenceGuard(TrainerCallback):
    """Looks at the trained weights before each log and checkpoint, and at the end.

    Args:
        files: returns the names of the files that a whole checkpoint has beside the Trainer's own.
        wrong_terms: returns the names of the terms of the loss that are no numbers.
    """

    def __init__(self, files: Callable[[], Sequence[str]], wrong_terms: Callable[[], Sequence[str]] = list) -> None:
        self._files, self._wrong_terms = files, wrong_terms
        self._first: torch.Tensor | None = None

    def see(self, loss: torch.Tensor, step: int) -> None:
        """Remember the first step whose loss was no finite number; the device is not waited for."""
        first = torch.zeros((), dtype=torch.int64, device=loss.device) if self._first is None else self._first
        self._first = torch.where((first == 0) & ~torch.isfinite(loss.detach()).all(), step, first)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Look, if something is to be logged or saved now."""
        if control.should_log or control.should_save:
            self.check(args, state, model)

    on_epoch_end = on_step_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at the weights that are handed over."""
        self.check(args, state, model)

    def check(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Make sure that all trained weights of `model` are finite.

        Raises:
            DivergedError: naming the step, the weights, the usual causes and the checkpoint to go back to.
        """
        broken = [] if model is None else _infinite(model)
        if not broken:
            return
        first = 0 if self._first is None else int(self._first)
        wrong = self._wrong_terms()
        which = f" ({', '.join(wrong)})" if wrong else ""
        when = f"; the loss was no number first at step {first}{which}" if first else ""
        whole = last_complete_checkpoint(args.output_dir, optimizer=False, files=self._files())
        way_out = f"resume from {whole.name}" if whole is not None else "train anew"
        raise DivergedError(
            f"after step {state.global_step}, {len(broken)} weights hold NaN or infinity, {broken[0]} among them"
            f"{when}. Usual causes: a learning rate that is too high, NaN in the inputs or labels, a teacher that "
            f"returns NaN, numbers too large for 16 bit. Mend that and {way_out}; nothing was saved of these weights"
        )


def _infinite(model: torch.nn.Module) -> list[str]:
    """Return the names of the trained parameters that are not finite everywhere."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    # Of sharded weights, those that are here.
    parts = {n: p.to_local() if hasattr(p, "to_local") else p for n, p in trained.items()}
    parts = {n: p for n, p in parts.items() if p.numel()}
    if not parts:
        return []
    largest = torch._foreach_norm(list(parts.values()), float("inf"))
    # One question to the device.
    found = torch.stack([torch.isfinite(value).to(largest[0].device) for value in largest])
    return [n for n, is_finite in zip(parts, found.tolist(), strict=True) if not is_finite]
