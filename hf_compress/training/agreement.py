"""How often student and teacher predict the same, during evaluation.

Level: glue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_compress.distillation.ensemble import TeacherEnsemble


class TeacherAgreement:
    """Counts predictions that are the same, over batches and processes.

    Args:
        trainer: that evaluates.
        objective: asks the teachers.
    """

    def __init__(self, trainer: Any, objective: TeacherEnsemble) -> None:
        self._trainer = trainer
        self._objective = objective
        self._counts: torch.Tensor | None = None

    def add(self, outputs: Any, inputs: Mapping[str, Any]) -> None:
        """Compare the student's outputs for a batch with what the teachers say."""
        with torch.no_grad(), self._trainer.accelerator.autocast():
            found = self._objective.agreement(outputs, inputs)
        self._counts = found if self._counts is None else self._counts + found

    def drain(self, prefix: str) -> dict[str, float]:
        """Return the metric by its name, {} without a batch that had labels, and start again."""
        counts = torch.zeros(2, device=self._trainer.args.device) if self._counts is None else self._counts
        self._counts = None
        if self._trainer.args.world_size > 1:
            counts = self._trainer.accelerator.reduce(counts, "sum")
        same, total = counts.tolist()
        return {f"{prefix}_teacher_agreement": same / total} if total else {}
