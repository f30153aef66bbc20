"""How sparsity and learning rate go with the optimizer step: pure functions of numbers, no model and no Trainer.

Level: maths. A curve maps progress (0 at the start of the rise, 1 at its end), the initial and the final sparsity to
the sparsity.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from hf_compress.registry import Registry

Curve = Callable[[float, float, float], float]
CURVES: Registry[Curve] = Registry("schedule")


@CURVES.register("cubic")
def cubic(progress: float, initial: float, final: float) -> float:
    """Rise fast while much is redundant, slowly at the end.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    return final + (initial - final) * (1 - progress) ** 3


@CURVES.register("linear")
def linear(progress: float, initial: float, final: float) -> float:
    """Rise evenly."""
    return initial + (final - initial) * progress


@CURVES.register("exponential")
def exponential(progress: float, initial: float, final: float) -> float:
    """Let the same fraction of what is left go at every mask: the density falls geometrically."""
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** progress


@CURVES.register("iterative")
def iterative(progress: float, initial: float, final: float) -> float:
    """Prune the same fraction of what is left in a few rounds, with long recovery between; set `rounds`.

    Source: Han et al. 2015; Renda et al. 2020, "Comparing rewinding and fine-tuning", algorithm 2.
    """
    return exponential(progress, initial, final)


@CURVES.register("constant")
def constant(progress: float, initial: float, final: float) -> float:
    """Be at the final sparsity from the first mask on."""
    return final


@dataclass(frozen=True)
class SparsityRamp:
    """Sparsity as a function of the optimizer step: 0 before `begin`, rising to `final` at `end`, constant after.

    Args:
        initial: sparsity of the first mask, 0-1; with rounds, sparsity before the first mask.
        final: sparsity of the last mask, 0-1.
        begin: step of the first mask; 0 is before the first optimizer step.
        end: step of the last mask, at least `begin`.
        frequency: steps between two masks; without meaning if there are rounds.
        curve: gives the sparsity at a progress of 0-1.
        rounds: number of masks, evenly spread from `begin` to `end`; 0: one every `frequency` steps.
    """

    initial: float
    final: float
    begin: int
    end: int
    frequency: int
    curve: Curve
    rounds: int = 0

    @property
    def mask_steps(self) -> list[int]:
        """The steps after which a mask is made, in order."""
        if self.rounds:
            gap = (self.end - self.begin) / max(1, self.rounds - 1)
            return sorted({self.begin + round(gap * i) for i in range(self.rounds)} | {self.end})
        return sorted({*range(self.begin, self.end, self.frequency), self.end})

    def is_due(self, step: int) -> bool:
        """Say whether a new mask is made at `step`."""
        if not self.begin <= step <= self.end:
            return False
        if self.rounds:
            return step in self.mask_steps
        return step == self.end or (step - self.begin) % self.frequency == 0

    def progress(self, step: int) -> float:
        """Return how much of the rise is done, 0-1, by the mask in force after `step` steps (not before `begin`)."""
        if step >= self.end:
            return 1.0
        if self.rounds:
            steps = self.mask_steps
            return bisect.bisect_right(steps, step) / len(steps)
        last_mask = self.begin + (step - self.begin) // self.frequency * self.frequency
        return (last_mask - self.begin) / (self.end - self.begin)

    def __call__(self, step: int, final: float | None = None) -> float:
        """Return the sparsity (0-1) of the mask in force after `step` optimizer steps.

        Args:
            step: optimizer steps done.
            final: of a parameter with a final sparsity of its own; `self.final` if not given.
        """
        final = self.final if final is None else final
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return final
        # Powers may overshoot by a rounding.
        return min(final, self.curve(self.progress(step), min(self.initial, final), final))

    def share(self, step: int) -> float:
        """Return how far the curve has come after `step` steps, 0-1, for what rises from 0, such as a threshold."""
        # Any final sparsity serves; of 1 the exponential curve has no values between.
        return 2 * self.__class__(0.0, 0.5, self.begin, self.end, self.frequency, self.curve, self.rounds)(step)

    def trace(self, total_steps: int) -> list[float]:
        """Return the sparsity after each of 0 ... `total_steps` steps, without any training."""
        return [self(step) for step in range(total_steps + 1)]


@dataclass(frozen=True)
class SawTooth:
    """Learning-rate rewinding: back to the peak at each mask, down linearly until the next, and to 0 at the end.

    Args:
        teeth: steps of the masks, in order.
        warmup: steps of linear rise from 0 at the start of training.
        total: steps of training.
        floor: fraction of the peak at the end of each tooth but the last, 0-1.

    Source: Kurtic et al. 2022, "The optimal BERT surgeon" (recipe); rewinding: Renda et al. 2020.
    """

    teeth: tuple[int, ...]
    warmup: int
    total: int
    floor: float

    def __call__(self, step: int) -> float:
        """Return the fraction of the peak learning rate, 0-1, of the step after `step` steps."""
        if step < self.warmup:
            return step / self.warmup
        edges = sorted({self.warmup, *(t for t in self.teeth if self.warmup < t < self.total), self.total})
        position = bisect.bisect_right(edges, step)
        if position >= len(edges):
            return 0.0
        start, stop = edges[position - 1], edges[position]
        low = 0.0 if stop == self.total else self.floor
        return 1 - (1 - low) * (step - start) / (stop - start)
