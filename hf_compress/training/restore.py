"""Puts back weights that the Trainer failed to load from a checkpoint.

Level: glue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_compress.architecture.saved import restore_renamed_


class RestoreWeights(TrainerCallback):
    """Loads a checkpoint the way `from_pretrained` does where its files have other names than the model.

    The Trainer reads the files as they are, warns of missing keys and goes on with the weights in memory: on resume,
    and when it loads the best model at the end.
    """

    def __init__(self) -> None:
        # Set by a Trainer that knows which folder it resumes from; otherwise it is found by the step.
        self.resume_folder: str | Path | None = None

    def resumed_from(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """Return the checkpoint that the run went on from; None at the start of a run."""
        if state.global_step == 0:
            return None
        return Path(self.resume_folder or Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Restore the checkpoint that the run resumes from."""
        folder = self.resumed_from(args, state)
        if model is not None and folder is not None:
            restore_renamed_(model, folder)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Restore the best checkpoint, which the Trainer has just loaded."""
        if model is not None and args.load_best_model_at_end and state.best_model_checkpoint:
            restore_renamed_(model, state.best_model_checkpoint)
