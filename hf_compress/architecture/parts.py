"""The sides of modules: entries of parameters that can only be permuted together.

Level: state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from hf_compress.architecture.anatomy import side
from hf_compress.architecture.units import AxisSlice


@dataclass(frozen=True)
class Part:
    """One side of one module: entries that can only be permuted together.

    Args:
        module: its name.
        side: "out", "in", "rows" of a table, or "own" where a module does with its parameters what it likes.
        slices: the dimensions, one entry a unit.
        size: number of entries.
    """

    module: str
    side: str
    slices: tuple[AxisSlice, ...]
    size: int

    def laid_out(self, size: int) -> list[tuple[AxisSlice, ...]]:
        """Return the ways in which the entries can belong to `size` channels."""
        if self.size == size:
            return [self.slices]
        if self.size % size or any(piece.start or piece.block for piece in self.slices):
            return []
        each = self.size // size
        return [tuple(replace(piece, per_unit=each, run=run) for piece in self.slices) for run in runs(each)]


def parts_of(model: nn.Module, pieces: Iterable[AxisSlice], fused: str | int, unit: int) -> list[Part]:
    """Return the parts that dimensions belong to.

    Args:
        model: whose parameters they are.
        pieces: the dimensions that a config field moves.
        fused: how a side of twice or three times `unit` entries is divided: "whole", "far apart" (all of the first,
            then all of the next), or a number of heads, in each of which one follows the other.
        unit: number of entries of one thing, such as all queries.
    """
    grouped: dict[tuple[str, str, str, int], list[AxisSlice]] = {}
    for piece in pieces:
        path = piece.parameter.rpartition(".")[0]
        where, size = part_side(piece, model), model.get_parameter(piece.parameter).shape[piece.dim]
        grouped.setdefault((path, where, piece.parameter if where == "own" else "", size), []).append(piece)
    found = []
    for (path, where, _, size), members in grouped.items():
        times = size // unit if where != "in" and size in (2 * unit, 3 * unit) else 1
        whole = [AxisSlice(p.parameter, p.dim, 1, p.layer) for p in members]
        if fused == "whole" or times == 1:
            found.append(Part(path, where, tuple(whole), size))
            continue
        width = unit if fused == "far apart" else unit // int(fused)
        for i in range(times):
            cut = (replace(p, start=i * width, block=width, every=times * width) for p in whole)
            found.append(Part(path, where, tuple(cut), unit))
    return found


def part_side(piece: AxisSlice, model: nn.Module) -> str:
    """Return the side of its module on which a dimension lies, as `Part` has it."""
    module = model.get_submodule(piece.parameter.rpartition(".")[0])
    known = side(piece, model)
    if known:
        return "out" if known == "bias" else known
    if isinstance(module, nn.Embedding):
        return "out" if piece.dim == 1 else "rows"
    if isinstance(module, nn.modules.conv._ConvNd):
        return ("out", "in", "own")[min(piece.dim, 2)]
    is_leaf = next(module.children(), None) is None
    return "out" if is_leaf and all(p.dim() == 1 for p in module.parameters()) else "own"


def runs(each: int) -> list[int]:
    """Return how many of the `each` entries of a channel can lie side by side: all, none, or a half or third."""
    found = [each, *(each // part for part in (2, 3) if each % part == 0), 1]
    return list(dict.fromkeys(found))
