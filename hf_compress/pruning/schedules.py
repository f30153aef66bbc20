"""How sparsity rises with the optimizer step: pure functions of numbers, no model and no Trainer.

Level: maths. A curve maps progress (0 at the start of the rise, 1 at its end) to the fraction of it that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_compress.registry import Registry

CURVES: Registry[Callable[[float], float]] = Registry("schedule")


@CURVES.register("cubic")
def cubic(progress: float) -> float:
    """Rise fast while much is redundant, slowly at the end: 1 - (1 - progress)^3.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    return 1 - (1 - progress) ** 3


@CURVES.register("linear")
def linear(progress: float) -> float:
    """Rise evenly."""
    return progress


@CURVES.register("constant")
def constant(progress: float) -> float:
    """Be at the final sparsity from the first mask on."""
    return 1.0


@dataclass(frozen=True)
class SparsityRamp:
    """Sparsity as a function of the optimizer step: 0 before `begin`, rising to `final` at `end`, constant after.

    Args:
        initial: sparsity of the first mask, 0-1.
        final: sparsity of the last mask, 0-1.
        begin: step of the first mask; 0 is before the first optimizer step.
        end: step of the last mask, at least `begin`.
        frequency: steps between two masks.
        curve: maps progress 0-1 to the fraction of the rise that is done.
    """

    initial: float
    final: float
    begin: int
    end: int
    frequency: int
    curve: Callable[[float], float]

    def is_due(self, step: int) -> bool:
        """Say whether a new mask is made at `step`."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.frequency == 0

    def __call__(self, step: int) -> float:
        """Return the sparsity (0-1) of the mask in force after `step` optimizer steps."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        last_mask = self.begin + (step - self.begin) // self.frequency * self.frequency
        progress = (last_mask - self.begin) / (self.end - self.begin)
        return self.initial + (self.final - self.initial) * self.curve(progress)

    def trace(self, total_steps: int) -> list[float]:
        """Return the sparsity after each of 0 ... `total_steps` steps, without any training."""
        return [self(step) for step in range(total_steps + 1)]
