"""One line of progress at each training log, for terminals and log files alike.

Level: outside.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def quiet_logs() -> None:
    """Leave out transformers' bars where nobody looks: a log file gets lines instead."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


class ProgressLines(TrainerCallback):
    """Prints step, loss and sparsity when the Trainer logs.

    Args:
        name: of what is being trained.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._started = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the numbers that a person follows."""
        shown = ("loss", "task_loss", "distillation_loss", "sparsity", "eval_accuracy", "train_runtime")
        found = [f"{name} {float(value):.4g}" for name, value in (logs or {}).items() if name in shown]
        if state.is_world_process_zero and found and args.disable_tqdm:
            seconds = time.monotonic() - self._started
            say(f"  {self.name} {state.global_step}/{state.max_steps}  {'  '.join(found)}  ({seconds:.0f} s)")


class StepClock(TrainerCallback):
    """Times optimizer steps, and ends the training when that has taken long enough.

    Args:
        first: steps that are left out, at least 1.
        limit: seconds after which training ends, once more steps than `first` are done.
    """

    def __init__(self, first: int, limit: float) -> None:
        self._first, self._limit = first, limit
        self._ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock."""
        self._ends.append(time.monotonic())
        if len(self._ends) > self._first and self._ends[-1] - self._ends[0] > self._limit:
            control.should_training_stop = True

    @property
    def seconds(self) -> float:
        """Mean time of a step; there must be more of them than `first`."""
        return (self._ends[-1] - self._ends[self._first - 1]) / (len(self._ends) - self._first)
