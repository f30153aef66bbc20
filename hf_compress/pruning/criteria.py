"""How important each weight is: one class a criterion, its fields are its options.

Level: maths. Larger scores are kept. A new criterion is one decorated class; its interface is in `criterion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_compress.pruning.criterion import Criterion, Moment, Place, State, chunks
from hf_compress.registry import Registry

CRITERIA: Registry[type[Criterion]] = Registry("criterion")


@CRITERIA.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """Absolute value.

    Source: Han et al. 2015, "Learning both weights and connections", section 3; schedule of Zhu & Gupta 2017.
    """

    reduction: ClassVar[str] = "rms"

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return weight.detach().abs().float()


@CRITERIA.register("lamp")
@dataclass(frozen=True)
class Lamp(Criterion):
    """Square over the sum of the squares that are not smaller, in the same parameter; made for `scope="global"`.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning" (the LAMP score).
    """

    needs_whole: ClassVar[bool] = True
    comparable: ClassVar[bool] = True

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        squares, order = weight.detach().double().square().flatten().sort(stable=True)
        sums = squares.flip(0).cumsum(0).flip(0)
        # Zeros that end a weight without any other entry would divide by zero.
        ranked = torch.where(squares > 0, squares / sums, 0.0)
        return torch.empty_like(ranked).scatter_(0, order, ranked).view(weight.shape).float()


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """A fixed random number an entry, the same on every device and number of processes; a baseline for the others.

    Args:
        seed: of the numbers.
    """

    seed: int = 0

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        # A hash of (seed, parameter, position) by two rounds of 31-bit multiplication and shift.
        positions = torch.arange(place.first, place.first + weight.numel(), device=weight.device)
        mixed = (positions * 0x5BD1E995 + (self.seed * 0x9E3779B1 + place.index * 0x85EBCA6B)) & 0x7FFFFFFF
        for factor in (0x45D9F3B, 0x119DE1F3):
            mixed = ((mixed ^ (mixed >> 15)) * factor) & 0x7FFFFFFF
        return ((mixed ^ (mixed >> 16)).float() / 2**31).view(weight.shape)


@CRITERIA.register("threshold")
@dataclass(frozen=True)
class Threshold(Criterion):
    """Entries with an absolute value below a threshold go, however many there are.

    Args:
        threshold: final one, above 0; it rises from 0 along the schedule.
    """

    threshold: float = 0.01
    reduction: ClassVar[str] = "rms"
    decides: ClassVar[bool] = True

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return weight.detach().abs().float()

    def cut(self, scores: torch.Tensor, share: float) -> torch.Tensor | float:  # noqa: D102
        return self.threshold * share


@CRITERIA.register("relative_threshold")
@dataclass(frozen=True)
class RelativeThreshold(Threshold):
    """Entries below `threshold` times the mean absolute value of their parameter go.

    Args:
        threshold: final factor, above 0; it rises from 0 along the schedule. The mean is over what is left.
    """

    threshold: float = 0.5
    needs_whole: ClassVar[bool] = True

    def cut(self, scores: torch.Tensor, share: float) -> torch.Tensor | float:  # noqa: D102
        alive = scores > 0
        return self.threshold * share * scores.sum() / alive.sum().clamp(min=1)


@CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """Running mean of |weight x gradient|, the first-order change of the loss when the entry goes.

    Args:
        decay: of the running mean, 0-1.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference".
    """

    decay: float = 0.95
    running: ClassVar[tuple[str, ...]] = ("importance",)

    def observe_(self, weight: torch.Tensor, gradient: torch.Tensor, state: State, moment: Moment) -> None:  # noqa: D102
        for w, g, mean in chunks(weight, gradient, state["importance"]):
            mean.lerp_((w * g).abs_().float(), 1 - self.decay)

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return state["importance"].clone()


@CRITERIA.register("movement")
@dataclass(frozen=True)
class Movement(Criterion):
    """Minus the sum of weight x gradient over the steps: large for weights that move away from zero.

    The score's learning rate is left out, since it does not change the ranking. With `regrow=True` the weight is the
    straight-through one, as in the paper. Over some hundred steps the sum is mostly noise, which is largest for large
    weights (scripts/bench_scores.py): the papers train for many epochs; `taylor` and `platon` serve short runs.

    Source: Sanh et al. 2020, "Movement pruning" (hard movement pruning, top-v).
    """

    running: ClassVar[tuple[str, ...]] = ("movement",)

    def observe_(self, weight: torch.Tensor, gradient: torch.Tensor, state: State, moment: Moment) -> None:  # noqa: D102
        state["movement"].addcmul_(weight, gradient, value=-1)

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return state["movement"].clone()


@CRITERIA.register("soft_movement")
@dataclass(frozen=True)
class SoftMovement(Criterion):
    """Movement scores S learnt by Adam; entries with sigmoid(S) below a threshold go, and a penalty lowers all scores.

    The loss that S follows is the task's plus `penalty` x mean(sigmoid(S)); threshold and penalty rise together.

    Args:
        threshold: final one of sigmoid(S), 0-1.
        penalty: final weight of the penalty; more of it means more zeros.
        learning_rate: of the scores.

    Source: Sanh et al. 2020, "Movement pruning", section 4 (soft movement pruning) and its nn_pruning settings.
    """

    threshold: float = 0.1
    penalty: float = 100.0
    learning_rate: float = 1e-2
    running: ClassVar[tuple[str, ...]] = ("score", "first_moment", "second_moment")
    decides: ClassVar[bool] = True

    def observe_(self, weight: torch.Tensor, gradient: torch.Tensor, state: State, moment: Moment) -> None:  # noqa: D102
        first, second = 1 - 0.9**moment.step, math.sqrt(1 - 0.999**moment.step)
        pressure = moment.share * self.penalty / moment.total
        running = (state[name] for name in self.running)
        for w, g, score, mean, square in chunks(weight, gradient, *running):
            sigmoid = score.sigmoid()
            slope = (w * g).float().add_(sigmoid * (1 - sigmoid), alpha=pressure)
            mean.lerp_(slope, 0.1)
            square.lerp_(slope * slope, 0.001)
            score.addcdiv_(mean, square.sqrt().div_(second).add_(1e-8), value=-self.learning_rate / first)

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return state["score"].sigmoid()

    def cut(self, scores: torch.Tensor, share: float) -> torch.Tensor | float:  # noqa: D102
        return self.threshold * share


@CRITERIA.register("platon")
@dataclass(frozen=True)
class Platon(Criterion):
    """Smoothed |weight x gradient| times its smoothed uncertainty, so that what is still undecided stays.

    Args:
        beta1: decay of the importance, 0-1.
        beta2: decay of the uncertainty, 0-1.

    Source: Zhang et al. 2022, "PLATON" (importance, uncertainty and their product).
    """

    beta1: float = 0.85
    beta2: float = 0.95
    running: ClassVar[tuple[str, ...]] = ("importance", "uncertainty")
    comparable: ClassVar[bool] = True

    def observe_(self, weight: torch.Tensor, gradient: torch.Tensor, state: State, moment: Moment) -> None:  # noqa: D102
        for w, g, mean, spread in chunks(weight, gradient, state["importance"], state["uncertainty"]):
            now = (w * g).abs_().float()
            mean.lerp_(now, 1 - self.beta1)
            spread.lerp_(now.sub_(mean).abs_(), 1 - self.beta2)

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return state["importance"] * state["uncertainty"]


@CRITERIA.register("keep")
@dataclass(frozen=True)
class Keep(Criterion):
    """Zeros that are there before the first step stay zero: fine-tuning of a sparse model."""

    decides: ClassVar[bool] = True
    at_start: ClassVar[bool] = True

    def scores(self, weight: torch.Tensor, state: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:  # noqa: D102
        return (weight.detach() != 0).float()

    def cut(self, scores: torch.Tensor, share: float) -> torch.Tensor | float:  # noqa: D102
        # Of a unit it is the fraction of entries that are not zero, and one is enough.
        return 1e-30
