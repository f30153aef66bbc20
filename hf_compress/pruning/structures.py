"""What is zeroed together: a structure turns a model into `Prunable`s, each a row of units with a score and a mask.

Level: state. A new structure is one decorated function here or in a file beside it, given the numbers in its name:
"2:4" calls "n:m" with (2, 4), "block:4x1" calls "block:hxw" with (4, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from hf_compress.architecture.targets import Target, find_targets
from hf_compress.architecture.units import UnitGroup, expand_units, unit_scores
from hf_compress.errors import ConfigError, TargetError
from hf_compress.pruning.config import REMOVABLE
from hf_compress.pruning.shards import local
from hf_compress.pruning.units import as_matrix, from_blocks, protect_largest, reduce_units, to_blocks
from hf_compress.registry import Registry


class Prunable(Protocol):
    """A row of units of one kind that compete with each other.

    Attributes:
        name: of the row.
        size: number of units, of the whole parameters.
        is_local: whether each unit lies on one process when parameters are cut along their first dimension.
        legal: numbers of units of which one must be left in the end; empty: any.
    """

    name: str
    size: int
    is_local: bool
    legal: Sequence[int]

    @property
    def shape(self) -> Sequence[int]:
        """Return (outputs, inputs, ...), which allocations look at."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return those whose entries the units are, by full name."""
        ...

    def scores(self, entries: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
        """Return the importance of each unit held here, float32, 1-D, from that of the entries held here."""
        ...

    def protect(self, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` with those of units that must stay raised to infinity."""
        ...

    def kept(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Turn the masks of the parameters, as held here, back into units that stay, bool, 1-D."""
        ...

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turn kept units held here, bool, 1-D, into one bool mask a parameter, shaped like the part held here."""
        ...

    def applied(self, keep: torch.Tensor) -> None:
        """Take note that these units, bool, 1-D, are kept from now on."""
        ...


Finder = Callable[..., list[Prunable]]
STRUCTURES: Registry[Finder] = Registry("structure")


@dataclass(frozen=True)
class Structure:
    """A structure and the numbers in its name.

    Args:
        name: as given.
        find: takes (model, include, exclude, *numbers).
        numbers: such as (2, 4).
        fixed_amount: whether all targets must lose equally much.
        removable: whether `shrink` can remove the units.
    """

    name: str
    find: Finder
    numbers: tuple[int, ...]
    fixed_amount: bool
    removable: bool

    def prunables(self, model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
        """Return what there is to prune in `model`.

        Raises:
            TargetError: if a pattern matches nothing, nothing can be pruned, or a weight does not fit the structure.
            ArchitectureError: if the structure does not exist in this architecture.
        """
        return self.find(model, include, exclude, *self.numbers)


def find_structure(spec: str) -> Structure:
    """Look up a structure by name, such as "unstructured", "2:4" or "block:4x1".

    Raises:
        ConfigError: if there is none, listing what exists.
    """
    kind = spec
    for pattern, name in ((r"\d+:\d+", "n:m"), (r"block:\d+x\d+", "block:hxw")):
        if re.fullmatch(pattern, spec):
            kind = name
    numbers = tuple(int(n) for n in re.findall(r"\d+", spec)) if kind != spec else ()
    if kind == "block:hxw" and 0 in numbers:
        raise ConfigError(f"structure {spec!r}: a block has at least one row and one column")
    is_removable = kind in REMOVABLE
    return Structure(spec, STRUCTURES.get(kind), numbers, kind == "n:m" or is_removable, is_removable)


class _Free:
    """What units have in common that stand for themselves."""

    legal: Sequence[int] = ()

    def protect(self, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores`: any unit may go."""
        return scores

    def applied(self, keep: torch.Tensor) -> None:
        """Nothing follows from it."""


class Blocks(_Free):
    """Blocks of `height` outputs and `width` inputs of one parameter; 0 stands for all of them."""

    def __init__(self, target: Target, height: int, width: int) -> None:
        self.name = target.name
        self.parameters = {target.name: target.parameter}
        self.input_dim = target.input_dim
        matrix = as_matrix(torch.empty(target.parameter.shape, device="meta"), self.input_dim)
        self.shape = tuple(matrix.shape)
        self.height, self.width = height or self.shape[0], width or self.shape[1]
        if self.shape[0] % self.height or self.shape[1] % self.width:
            raise TargetError(
                f"{target.name} has {self.shape[0]} outputs and {self.shape[1]} inputs, which blocks of "
                f"{self.height}x{self.width} do not divide; choose another block or exclude it"
            )
        self.size = self.shape[0] // self.height * (self.shape[1] // self.width)
        # The first dimension is that of the outputs, unless the weight is stored transposed.
        self.is_local = (self.height if self.input_dim == 1 else self.width) == 1 or self.size == 1

    def scores(self, entries: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
        """Return one score a block."""
        grouped = to_blocks(entries[self.name], self.input_dim, self.height, self.width)
        return reduce_units(grouped, reduction)

    def kept(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Look at one entry of each block."""
        return to_blocks(masks[self.name], self.input_dim, self.height, self.width)[:, 0]

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mask of this parameter."""
        shape = local(self.parameters[self.name]).shape
        return {self.name: from_blocks(keep, shape, self.input_dim, self.height, self.width)}


class WeightEntries(_Free):
    """The single entries of one parameter; with a group, at most so many of its neighbours along the inputs go."""

    def __init__(self, target: Target, keep: int = 0, group: int = 0) -> None:
        self.name = target.name
        self.parameters = {target.name: target.parameter}
        self.size = target.parameter.numel()
        self.shape = tuple(target.parameter.shape)
        self.input_dim = target.input_dim if target.parameter.dim() > 1 else 0
        self.keep, self.group = keep, group
        if group and self.shape[self.input_dim] % group:
            raise TargetError(
                f"{target.name} has {self.shape[self.input_dim]} inputs, which {keep}:{group} does not divide; "
                "choose another N:M or exclude it"
            )
        self.is_local = not group or self.input_dim != 0

    def scores(self, entries: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
        """Return one score an entry."""
        return entries[self.name].reshape(-1)

    def protect(self, scores: torch.Tensor) -> torch.Tensor:
        """Raise the largest of each group, which must stay."""
        if not self.group:
            return scores
        shaped = scores.view(local(self.parameters[self.name]).shape)
        return protect_largest(shaped, self.input_dim, self.keep, self.group).reshape(-1)

    def kept(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mask as it is."""
        return masks[self.name].reshape(-1)

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mask of this parameter."""
        return {self.name: keep.view(local(self.parameters[self.name]).shape)}


class CoupledUnits(_Free):
    """Units that span several parameters, such as an FFN neuron: a row of one matrix and a column of the next.

    Args:
        group: the units.
        parameters: of the model, by full name.
        block: which of the blocks of the group, if only its units compete.
    """

    is_local = False

    def __init__(self, group: UnitGroup, parameters: Mapping[str, nn.Parameter], block: int = 0) -> None:
        self.group = group
        self.size = group.count // group.blocks
        self.name = f"{group.name}[{block}]" if group.blocks > 1 else group.name
        self.shape = (self.size,)
        self.parameters = {s.parameter: parameters[s.parameter] for s in group.slices}
        self._units = slice(block * self.size, (block + 1) * self.size)

    def scores(self, entries: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
        """Return one score a unit, over all its entries."""
        return unit_scores(self.group, entries, reduction)[self._units].clone()

    def kept(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Look at all entries of each unit; those that other units share may be gone with these."""
        return (unit_scores(self.group, {n: m.float() for n, m in masks.items()}, "mean") > 0)[self._units]

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return one mask a coupled parameter, biases included."""
        whole = torch.ones(self.group.count, dtype=torch.bool, device=keep.device)
        whole[self._units] = keep
        return expand_units(self.group, whole, self.parameters)


@STRUCTURES.register("unstructured")
def unstructured(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Single weights of the linear and convolutional layers of the body."""
    return [WeightEntries(t) for t in find_targets(model, include, exclude)]


@STRUCTURES.register("n:m")
def n_of_m(model: nn.Module, include: Sequence[str], exclude: Sequence[str], keep: int, group: int) -> list[Prunable]:
    """Single weights, of which `keep` of every `group` neighbours along the inputs stay."""
    return [WeightEntries(t, keep, group) for t in find_targets(model, include, exclude)]


@STRUCTURES.register("block:hxw")
def blocks(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], height: int, width: int
) -> list[Prunable]:
    """Blocks of `height` outputs and `width` inputs."""
    return [Blocks(t, height, width) for t in _matrices(model, include, exclude)]


@STRUCTURES.register("rows")
def rows(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """All weights of an output."""
    return [Blocks(t, 1, 0) for t in _matrices(model, include, exclude)]


@STRUCTURES.register("columns")
def columns(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """All weights of an input."""
    return [Blocks(t, 0, 1) for t in _matrices(model, include, exclude)]


def _matrices(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Target]:
    found = find_targets(model, include, exclude)
    stacks = [target.name for target in found if target.is_stack]
    if stacks:
        raise TargetError(
            f"expected single matrices, found those of all experts stacked in {stacks[0]}; prune single weights or "
            "N:M, or leave them out with exclude=['experts']"
        )
    return found
