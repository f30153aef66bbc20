"""What a sweep varies and how its trials are scored; what a budget allows.

Level: base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.options import Options

SAMPLERS = ("tpe", "random", "grid")
LESS_IS_BETTER = ("loss", "perplexity", "mse")
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


@dataclass(frozen=True)
class BudgetConfig(Options):
    """What a model must not exceed, and how long it may take to find one that does not."""

    max_bytes: float | None = field(
        default=None, metadata={"help": "bytes of the weights; below 1: a fraction of those of the model"}
    )
    max_latency: float | None = field(
        default=None, metadata={"help": "milliseconds of a pass; below 1: a fraction of what the model takes"}
    )
    max_params: float | None = field(
        default=None, metadata={"help": "number of parameters; below 1: a fraction of those of the model"}
    )
    max_drop: float | None = field(
        default=None,
        metadata={"help": "how much worse the metric may be, in its unit (0.01 of accuracy: a point)"},
    )
    minutes: float = field(default=30.0, metadata={"help": "time for the whole search, above 0"})
    forms: tuple[str, ...] = field(
        default=(), metadata={"help": "float32, nf4, onnx-int8, openvino-int8; empty: all that are installed"}
    )
    finalists: int = field(default=3, metadata={"help": "candidates that are trained briefly, at least 1"})
    samples: int = field(default=512, metadata={"help": "training samples that decide what is cut, at least 1"})
    batch_size: int = field(default=1, metadata={"help": "of the latency, at least 1"})
    length: int | None = field(default=None, metadata={"help": "tokens of the latency; default 128"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of the training with distillation, above 0"})
    train_batch_size: int = field(default=32, metadata={"help": "of the training, at least 1"})
    seed: int = field(default=0, metadata={"help": "of all that is drawn"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        limits = ("max_bytes", "max_latency", "max_params")
        if all(getattr(self, name) is None for name in limits):
            yield f"give at least one of {', '.join(limits)}: nothing is asked for"
        for name in (*limits, "minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                yield f"{name} must be above 0, found {value}"
        if self.max_drop is not None and not self.max_drop >= 0:
            yield f"max_drop must be at least 0, found {self.max_drop}"
        for name in ("finalists", "samples", "batch_size", "train_batch_size"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, found {getattr(self, name)}"
        if self.length is not None and self.length < 1:
            yield f"length must be at least 1, found {self.length}"


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
