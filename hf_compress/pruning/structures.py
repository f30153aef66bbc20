"""What is zeroed together: a structure turns a model into `Prunable`s, each a row of units with a score and a mask.

Level: state. A new structure is one decorated function here or in a file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from hf_compress.architecture.anatomy import ffn_units
from hf_compress.architecture.targets import find_targets
from hf_compress.architecture.units import UnitGroup, expand_units, unit_scores
from hf_compress.registry import Registry

Criterion = Callable[[torch.Tensor], torch.Tensor]


class Prunable(Protocol):
    """A row of units of one kind that compete with each other."""

    name: str
    size: int

    def scores(self, criterion: Criterion) -> torch.Tensor:
        """Return the importance of each unit, float32, shape (size,)."""
        ...

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turn kept units, bool, shape (size,), into one bool mask a parameter, shaped like it."""
        ...


STRUCTURES: Registry[Callable[[nn.Module, Sequence[str], Sequence[str]], list[Prunable]]] = Registry("structure")


class WeightEntries:
    """The single entries of one parameter."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.parameter = parameter
        self.size = parameter.numel()

    def scores(self, criterion: Criterion) -> torch.Tensor:
        """Return one score an entry."""
        return criterion(self.parameter).reshape(-1)

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mask of this parameter."""
        return {self.name: keep.view(self.parameter.shape)}


class CoupledUnits:
    """Units that span several parameters, such as an FFN neuron: a row of one matrix and a column of the next."""

    def __init__(self, group: UnitGroup, parameters: Mapping[str, nn.Parameter]) -> None:
        self.name = group.name
        self.size = group.count
        self.group = group
        self.parameters = {s.parameter: parameters[s.parameter] for s in group.slices}

    def scores(self, criterion: Criterion) -> torch.Tensor:
        """Return the L2 norm of the scores of each unit's entries."""
        return unit_scores(self.group, {name: criterion(p) for name, p in self.parameters.items()})

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return one mask a coupled parameter, biases included."""
        return expand_units(self.group, keep, self.parameters)


@STRUCTURES.register("unstructured")
def unstructured(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Single weights of the linear and convolutional layers of the body."""
    return [WeightEntries(t.name, t.parameter) for t in find_targets(model, include, exclude)]


@STRUCTURES.register("ffn")
def ffn(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Whole neurons of the feed-forward layers, which `shrink` can remove."""
    parameters = dict(model.named_parameters())
    return [CoupledUnits(group, parameters) for group in ffn_units(model)]
