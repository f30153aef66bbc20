"""What a sweep varies and how its trials are scored.

Level: base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.options import Options

SAMPLERS = ("tpe", "random", "grid")
DIRECTIONS = ("maximize", "minimize")
# What is measured of the saved model rather than of its predictions.
COSTS = ("bytes_on_disk", "parameters", "nonzeros", "latency")


@dataclass(frozen=True)
class SweepConfig(Options):
    """A search over the options of a recipe, scored by cross-validation on its training data."""

    space: Mapping[str, Any] = field(
        metadata={
            "help": "option of the recipe, such as stages.small.compression.distillation.temperature -> a list of "
            "choices, or low and high (with log or step)"
        }
    )
    trials: int = field(default=20, metadata={"help": "number of trials, at least 1"})
    folds: int = field(
        default=3,
        metadata={"help": "parts of the training data, each tested on in turn; 1: the validation split, once"},
    )
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "every fold is trained with each of them"})
    objectives: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "help": f"metric -> maximize or minimize; metrics of the task, {', '.join(COSTS)}; default: the first "
            "metric of the task"
        },
    )
    sampler: str = field(default="tpe", metadata={"help": "tpe, random or grid"})
    prune: bool = field(
        default=True,
        metadata={"help": "with one objective: stop a trial after a fold at which it is below the median of others"},
    )
    seed: int = field(default=0, metadata={"help": "of the sampler"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not self.space:
            yield "space is empty: name at least one option of the recipe to vary"
        for key, values in self.space.items():
            yield from (f"space: {key} {problem}" for problem in _space_problems(key, values))
        for name in ("trials", "folds"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, found {getattr(self, name)}"
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds must be different numbers, at least one, found {list(self.seeds)}"
        for name, direction in self.objectives.items():
            if direction not in DIRECTIONS:
                yield f"objectives: {name} must be one of {', '.join(DIRECTIONS)}, found {direction!r}"
        if self.sampler not in SAMPLERS:
            yield f"sampler must be one of {', '.join(SAMPLERS)}, found {self.sampler!r}"
        elif self.sampler == "grid" and any(isinstance(v, Mapping) and "step" not in v for v in self.space.values()):
            yield "sampler grid needs choices, or low, high and step, for every option"


def _space_problems(key: str, values: Any) -> Iterator[str]:
    if not key.startswith("stages."):
        yield "must be an option of a stage, stages.NAME.OPTION: data, measurements and name are those of the recipe"
    if isinstance(values, (list, tuple)):
        if not values:
            yield "has no choices"
        return
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}:
        yield f"must be a list of choices, or a mapping of low, high and perhaps log or step, found {values!r}"
        return
    numbers = [values[n] for n in ("low", "high", "step") if n in values]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v) for v in numbers):
        yield f"must have finite numbers, found {dict(values)}"
        return
    if values["low"] >= values["high"]:
        yield f"must have low below high, found {values['low']} and {values['high']}"
    if values.get("step", 1) <= 0:
        yield f"must have a step above 0, found {values['step']}"
    if values.get("log") and ("step" in values or values["low"] <= 0):
        yield "with log takes no step, and low above 0"
