"""Which axes of a model a config can shrink, found by probing it; no line is about any architecture.

Level: state. What a probe cannot know (the order inside fused matrices) is settled by rule here and verified by
`shrink`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.probing import Change, Shapes
from hf_compress.architecture.units import AxisSlice as AxisSlice
from hf_compress.architecture.units import UnitGroup as UnitGroup
from hf_compress.architecture.units import expand_units as expand_units
from hf_compress.architecture.units import nonzero_units as nonzero_units
from hf_compress.architecture.units import unit_scores as unit_scores
from hf_compress.errors import ArchitectureError

_CACHE: dict[tuple[type, str], Anatomy] = {}
_CACHE_SIZE = 16


@dataclass(frozen=True)
class Axis:
    """One thing that a config field makes larger or smaller.

    Args:
        name: "ffn", "layers", "heads", "kv_heads", "width", "vocabulary", or "other"; "hidden", "filters" and
            "head_size" where each channel is known in all layers (`width`).
        field: dotted path of the config field.
        size: its value now.
        slices: the dimensions it reaches; empty for layers.
        stacks: for layers, the prefixes before the index, such as "encoder.layer."; otherwise empty.
        groups: for ffn and whole heads, the units of each layer; for hidden and filters, of each space of channels, as
            many of each going as of the first; otherwise empty.
        fields: for these, every config field that follows, and how much of it one unit stands for.
        extra: config fields that must be written as they are once units go, so that the model derives nothing else.
        legal: the numbers of units that the config accepts, ascending; empty if all are.
    """

    name: str
    field: str
    size: int
    slices: tuple[AxisSlice, ...] = ()
    stacks: tuple[str, ...] = ()
    groups: tuple[UnitGroup, ...] = ()
    fields: tuple[tuple[str, int | Fraction], ...] = ()
    extra: tuple[tuple[str, int], ...] = ()
    legal: tuple[int, ...] = ()

    def values(self, units: int) -> dict[str, int]:
        """Return the config fields that say that `units` units are there."""
        return {name: int(each * units) for name, each in self.fields or ((self.field, 1),)} | dict(self.extra)

    def counts(self, units: int) -> list[int]:
        """Return how many units of each group are there when there are `units` of the first."""
        return [int(Fraction(group.count * units, self.size)) for group in self.groups]


@dataclass(frozen=True)
class Anatomy:
    """What a config can say about the shapes of a model.

    Args:
        axes: every field that changes a shape.
        fixed: the other fields that were asked -> why they change none.
        shapes: name -> shape of the parameters that the config gives, tied ones once.
    """

    axes: tuple[Axis, ...]
    fixed: Mapping[str, str]
    shapes: Shapes

    def named(self, name: str) -> tuple[Axis, ...]:
        """Return the axes called `name`; models with two stacks can have two."""
        return tuple(axis for axis in self.axes if axis.name == name)


def probe(model: nn.Module) -> Anatomy:
    """Return the anatomy of a transformers model; only its class and config are looked at.

    Raises:
        ArchitectureError: if `model` has no config or cannot be built from it.
    """
    config = probing.config_of(model)
    key = (type(model), json.dumps(config.to_dict(), sort_keys=True, default=str))
    if key not in _CACHE:
        while len(_CACHE) >= _CACHE_SIZE:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _probe(type(model), config)
    return _CACHE[key]


def ffn_units(model: nn.Module) -> list[UnitGroup]:
    """Return the feed-forward neurons of each layer, in the order of the layers.

    Raises:
        ArchitectureError: if the config has no field for the feed-forward width.
    """
    groups = [group for axis in probe(model).named("ffn") for group in axis.groups]
    if not groups:
        raise ArchitectureError(
            f"expected a feed-forward width that the config can change, found none in {type(model).__name__}; use "
            "structure='unstructured', or see inspect_model(model)"
        )
    return groups


def _probe(model_class: type, config: Any) -> Anatomy:
    base = probing.base_shapes(model_class, config)
    answers = {
        field: probing.ask(model_class, config, field, value, base) for field, value in probing.number_fields(config)
    }
    changes = {field: answer for field, answer in answers.items() if isinstance(answer, Change)}
    stacks = {field: found for field, change in changes.items() if (found := _stacks(change, base))}
    layer_of = layer_lookup([prefix for found in stacks.values() for prefix in found])
    meta = probing.build(model_class, config)
    axes = []
    for field, change in changes.items():
        if field in stacks:
            axes.append(Axis("layers", field, change.size, stacks=stacks[field]))
            continue
        axis = Axis("other", field, change.size, slices=_slices(change, base, layer_of))
        axes.append(_classify(axis, meta, base))
    fixed = {field: answer for field, answer in answers.items() if isinstance(answer, str)}
    return Anatomy(tuple(axes), fixed, base)


def _stacks(change: Change, base: Shapes) -> tuple[str, ...]:
    """Return the prefixes of the layer lists that `change` shortens, or () if it does anything else."""
    gone = change.larger.keys() - change.smaller.keys()
    kept = change.larger.keys() & change.smaller.keys()
    if not gone or len(kept) != len(change.smaller) or any(change.larger[n] != change.smaller[n] for n in kept):
        return ()
    found = {_layer_prefix(name, change.smaller) for name in gone}
    prefixes = tuple(sorted(prefix for prefix in found if prefix))
    if len(prefixes) != len(found) or not all(_is_uniform(prefix, change.size, base) for prefix in prefixes):
        return ()
    return prefixes


def _layer_prefix(name: str, smaller: Shapes) -> str:
    """Return what stands before the first index under which nothing is left in `smaller`."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        here = ".".join(parts[: i + 1]) + "."
        if part.isdigit() and not any(other.startswith(here) for other in smaller):
            return ".".join(parts[:i]) + "." if i else ""
    return ""


def _is_uniform(prefix: str, size: int, base: Shapes) -> bool:
    """Whether `prefix` has `size` layers whose common parameters have equal shapes, as layers of one width do."""
    layers: dict[int, Shapes] = {}
    for name, shape in base.items():
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            if not index.isdigit():
                return False
            layers.setdefault(int(index), {})[rest] = shape
    first = layers.get(0, {})
    equal = all(first.get(rest, shape) == shape for layer in layers.values() for rest, shape in layer.items())
    return sorted(layers) == list(range(size)) and equal


def layer_lookup(prefixes: Iterable[str]) -> Callable[[str], int | None]:
    """Return a function from parameter name to the index of its layer; None outside the layers."""
    known = tuple(prefixes)

    def layer_of(name: str) -> int | None:
        tail = next((name.removeprefix(prefix) for prefix in known if name.startswith(prefix)), name)
        # Without a known stack (one shared layer, or depth that no field says) the first index is the layer.
        return next((int(part) for part in tail.split(".") if part.isdigit()), None)

    return layer_of


def _slices(change: Change, base: Shapes, layer_of: Callable[[str], int | None]) -> tuple[AxisSlice, ...]:
    """Return the dimensions that `change` moves; () if parameters come, go or move by no whole number per unit."""
    if change.smaller.keys() != change.larger.keys() or change.smaller.keys() != base.keys():
        return ()
    found = []
    for name, low in change.smaller.items():
        high = change.larger[name]
        if len(low) != len(high):
            return ()
        for dim in range(len(low)):
            per_unit, rest = divmod(high[dim] - low[dim], change.step)
            if rest or per_unit < 0:
                return ()
            if per_unit:
                found.append(AxisSlice(name, dim, per_unit, layer_of(name)))
    return tuple(found)


def _classify(axis: Axis, meta: nn.Module, base: Shapes) -> Axis:
    """Name an axis by rule: by what it reaches, never by what its field is called."""
    is_whole = all(base[p.parameter][p.dim] == p.per_unit * axis.size for p in axis.slices)
    inside = [piece for piece in axis.slices if piece.layer is not None]
    outside = [piece for piece in axis.slices if piece.layer is None]
    if not axis.slices or not is_whole:
        return axis
    if outside:
        embedding = _input_embedding(meta)
        reached = {(piece.parameter, piece.dim) for piece in outside}
        if inside:
            return replace(axis, name="width")
        return replace(axis, name="vocabulary") if (embedding, 0) in reached else axis
    groups = _ffn_groups(axis, meta)
    if groups:
        return replace(axis, name="ffn", groups=groups)
    return replace(axis, name=_attention_kind(inside, meta))


def _input_embedding(meta: nn.Module) -> str | None:
    try:
        weight = getattr(meta.get_input_embeddings(), "weight", None)
    except (NotImplementedError, AttributeError):
        return None
    return next((name for name, p in meta.named_parameters() if p is weight), None)


def side(piece: AxisSlice, meta: nn.Module) -> str:
    """Return "out", "in" or "bias": which side of its module a slice lies on; "" where that is not known."""
    from transformers.pytorch_utils import Conv1D

    path, _, leaf = piece.parameter.rpartition(".")
    module = meta.get_submodule(path)
    if not isinstance(module, (nn.Linear, Conv1D)):
        return ""
    if leaf == "bias":
        return "bias"
    out_dim = 1 if isinstance(module, Conv1D) else 0
    return ("out" if piece.dim == out_dim else "in") if leaf == "weight" else ""


def _ffn_groups(axis: Axis, meta: nn.Module) -> tuple[UnitGroup, ...]:
    """Return the blocks of an inner dimension: made by one or two matrices, read by exactly one; () if it is not so.

    A norm or a gate of its own between them would react to zeroed units, so any other parameter rules it out.
    """
    sides = {piece: side(piece, meta) for piece in axis.slices}
    readers = [piece for piece, where in sides.items() if where == "in"]
    groups = []
    for reader in readers:
        path = reader.parameter.rpartition(".")[0]
        members: list[AxisSlice] = []
        # The smallest module that holds both the reader and what feeds it is the block.
        while path and len(members) < 2:
            path = path.rpartition(".")[0]
            members = [piece for piece in axis.slices if piece.parameter.startswith(f"{path}.")]
        if not _is_ffn_block(members, sides):
            return ()
        layer = reader.layer if reader.layer is not None else 0
        groups.append(UnitGroup(layer, path, axis.size, tuple(members), axis.field))
    covered = {piece for group in groups for piece in group.slices}
    return tuple(groups) if len(covered) == len(axis.slices) else ()


def _is_ffn_block(members: list[AxisSlice], sides: Mapping[AxisSlice, str]) -> bool:
    makers = [piece for piece in members if sides[piece] == "out"]
    readers = [piece for piece in members if sides[piece] == "in"]
    biases = [piece for piece in members if sides[piece] == "bias"]
    fed = {piece.parameter.rpartition(".")[0] for piece in makers}
    return (
        len(makers) + len(readers) + len(biases) == len(members)
        and len(readers) == 1
        and readers[0].per_unit == 1
        and sorted(piece.per_unit for piece in makers) in ([1], [1, 1], [2])
        and all(piece.parameter.rpartition(".")[0] in fed for piece in biases)
    )


def _attention_kind(pieces: list[AxisSlice], meta: nn.Module) -> str:
    """Tell query heads (made and read) from key-value heads (made only), by blocks of equal size per unit."""
    sides = [side(piece, meta) for piece in pieces]
    if "" in sides or len({piece.per_unit for piece in pieces}) != 1 or pieces[0].per_unit == 1:
        return "other"
    made = sum(where == "out" for where in sides)
    read = sum(where == "in" for where in sides)
    if read and made == read:
        return "heads"
    return "kv_heads" if made and not read else "other"
