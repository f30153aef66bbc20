"""What a stage of a recipe is: a function from an earlier model folder to a new one.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_compress.recipes.config import RecipeConfig, StageConfig
from hf_compress.recipes.task import Task
from hf_compress.registry import Registry


@dataclass
class StageContext:
    """What a stage may use.

    Args:
        recipe: the whole recipe.
        stage: this stage.
        task: data, collator, processor.
        output: folder to make; it does not exist yet.
        work: folder for checkpoints, kept when the run is interrupted.
        resolve: turns the name of an earlier stage into its folder and leaves ids and paths as they are.
    """

    recipe: RecipeConfig
    stage: StageConfig
    task: Task
    output: Path
    work: Path
    resolve: Callable[[str], str]
    method: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: the function that runs it and the options of `StageConfig` that it takes."""

    run: Callable[[StageContext], Mapping[str, Any]]
    options: frozenset[str]

    def __call__(self, context: StageContext) -> Mapping[str, Any]:
        """Run the stage; returns what was done to the model, for its record."""
        return self.run(context)


STAGES: Registry[StageKind] = Registry("kind of stage")


def stage_kind(name: str, *options: str) -> Callable[[Callable[[StageContext], Mapping[str, Any]]], StageKind]:
    """Register a function as a kind of stage that takes the named options."""

    def add(run: Callable[[StageContext], Mapping[str, Any]]) -> StageKind:
        return STAGES.register(name)(StageKind(run, frozenset(options)))

    return add
