"""Carries what was found on a small model over to a large one of the same make.

Level: state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from hf_compress.architecture.moved import Shape
from hf_compress.architecture.trace import Space
from hf_compress.architecture.units import AxisSlice
from hf_compress.errors import ArchitectureError

# A space, the layer it lies in (0: none), its number of units, and where they are.
Lifted = tuple[Space, int, int, tuple[AxisSlice, ...]]


def lift(spaces: Sequence[Space], small: Shape, to: Shape, prefixes: Sequence[str]) -> list[Lifted]:
    """Return the spaces of a large model: those that lie in one layer of the small one are in each of its layers.

    Args:
        spaces: of the small model.
        small: its shape.
        to: the shape of the large one.
        prefixes: what stands before the index of a layer.

    Raises:
        ArchitectureError: if a dimension has no counterpart.
    """
    last = {
        prefix: max((_index(n, prefix) for n in small.base if n.startswith(prefix)), default=0) for prefix in prefixes
    }
    homes: dict[tuple[str, int], list[tuple[int, AxisSlice]]] = {}
    for number, space in enumerate(spaces):
        for piece in space.slices:
            homes.setdefault((piece.parameter, piece.dim), []).append((number, piece))
    local = [_common_layer(space, prefixes) for space in spaces]
    found: dict[tuple[int, int | None], list[AxisSlice]] = {}
    for piece in to.pieces:
        prefix = next((p for p in prefixes if piece.parameter.startswith(p)), None)
        index = None if prefix is None else _index(piece.parameter, prefix)
        name = piece.parameter
        if prefix is not None and index is not None and index > last[prefix]:
            name = name.replace(f"{prefix}{index}.", f"{prefix}{last[prefix]}.", 1)
        if (name, piece.dim) not in homes:
            raise ArchitectureError(f"a small model of the same make has no counterpart of {piece.parameter}")
        ratio = Fraction(to.base[piece.parameter][piece.dim], small.base[name][piece.dim])
        for number, small_piece in homes[name, piece.dim]:
            key = (number, index if local[number] is not None else None)
            scaled = _scaled(small_piece, spaces[number], ratio)
            found.setdefault(key, []).append(replace(scaled, parameter=piece.parameter, layer=index))
    return [
        (spaces[number], index or 0, _count(spaces[number], small, to), tuple(slices))
        for (number, index), slices in found.items()
    ]


def _count(space: Space, small: Shape, to: Shape) -> int:
    return space.size if space.is_heads else int(Fraction(space.size * to.size, small.size))


def _scaled(piece: AxisSlice, space: Space, ratio: Fraction) -> AxisSlice:
    """Return where the units lie in a dimension `ratio` times as long."""
    if space.is_heads:
        return replace(piece, per_unit=int(piece.per_unit * ratio), run=int(piece.run * ratio))
    return replace(
        piece, start=int(piece.start * ratio), block=int(piece.block * ratio), every=int(piece.every * ratio)
    )


def _index(name: str, prefix: str) -> int:
    return int(name.removeprefix(prefix).partition(".")[0])


def _common_layer(space: Space, prefixes: Sequence[str]) -> tuple[str, int] | None:
    """Return the layer that all of a space lies in, if there is one."""
    layers = set()
    for piece in space.slices:
        prefix = next((p for p in prefixes if piece.parameter.startswith(p)), None)
        layers.add(None if prefix is None else (prefix, _index(piece.parameter, prefix)))
    return layers.pop() if len(layers) == 1 else None
