"""What a width that a config says moves: the fields that say it, and the dimensions that follow.

Level: state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hf_compress.architecture import probing
from hf_compress.architecture.parts import part_side
from hf_compress.architecture.units import AxisSlice


@dataclass(frozen=True)
class Shape:
    """A config, and what a width that it says moves.

    Args:
        config: of a model.
        size: of the width.
        shares: config field -> how much of it one channel stands for.
        step: how many channels can only go together.
        base: the shapes of all parameters.
        pieces: the dimensions that the width moves.
    """

    config: Any
    size: int
    shares: Mapping[str, Fraction]
    step: int
    base: probing.Shapes
    pieces: tuple[AxisSlice, ...]


@dataclass(frozen=True)
class Way:
    """One way to say a smaller width.

    Args:
        fields: config fields of widths, which are equal.
        heads: config fields of numbers of heads, if heads go as a whole; otherwise each becomes narrower.
    """

    fields: tuple[str, ...]
    heads: tuple[str, ...]

    def shape(self, model_class: type, config: Any) -> Shape:
        """Return what this way moves in the model that `config` gives."""
        size = probing.read_field(config, self.fields[0])
        shares = dict.fromkeys(self.fields, Fraction(1))
        shares |= {name: Fraction(probing.read_field(config, name), size) for name in self.heads}
        # Channels that can only go together.
        step = math.lcm(*(share.denominator for share in shares.values()))
        base = probing.base_shapes(model_class, config)
        return Shape(config, size, shares, step, base, _moved(model_class, config, size, shares, step, base))


def _moved(
    model_class: type, config: Any, size: int, shares: Mapping[str, Fraction], step: int, base: probing.Shapes
) -> tuple[AxisSlice, ...]:
    """Return the dimensions that a smaller width moves; () if it changes anything else."""
    for trial in dict.fromkeys((size // 2 // step * step, size - step, 2 * size)):
        if not 0 < trial != size:
            continue
        shapes = probing.try_fields(model_class, config, {name: int(share * trial) for name, share in shares.items()})
        if isinstance(shapes, str) or shapes.keys() != base.keys():
            continue
        moved = [
            AxisSlice(name, dim, 1, None)
            for name, shape in base.items()
            for dim, (now, then) in enumerate(zip(shape, shapes[name], strict=True))
            if now != then
        ]
        if all((shapes[p.parameter][p.dim] < base[p.parameter][p.dim]) == (trial < size) for p in moved):
            return tuple(moved)
    return ()


def is_width(shape: Shape, model: Any) -> bool:
    """Whether what moves is made by some modules and read by others."""
    sides = {part_side(piece, model) for piece in shape.pieces}
    own = {piece.parameter for piece in shape.pieces if part_side(piece, model) == "own"}
    # A module of several matrices, such as experts, may make and read them itself.
    return {"in", "out"} <= sides or len(own) > len({name.rpartition(".")[0] for name in own})
