"""Attention heads that a config can remove, in whole key-value groups; found by probing and by permuting a twin.

Level: state. No line is about any architecture: which entries a head has is guessed in the few ways there are and
settled by the forward pass of a small random model (`twin`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, Axis, layer_lookup, probe
from hf_compress.architecture.probing import Shapes
from hf_compress.architecture.twin import Twin, twin_config
from hf_compress.architecture.units import AxisSlice, UnitGroup
from hf_compress.errors import ArchitectureError

_QUERY_HEADS = re.compile(r"(^|\.)(\w+_)?(n_heads?|num_heads|attention_heads)$")
_SHARED_HEADS = re.compile(r"(^|\.)(num_key_value_heads|num_kv_heads|n_kv_heads)$")
_HEAD_SIZE = "head_dim"
_CACHE: dict[tuple[type, str], tuple[Axis, ...] | str] = {}
_CACHE_SIZE = 16
_ORDERS = ("side by side", "query, key, value", "far apart")


@dataclass(frozen=True)
class HeadCounts:
    """What a config says of its heads.

    Args:
        fields: config field -> heads of it in one group that is removed together.
        groups: number of such groups.
        extra: config fields that must be written for the head size to stay, name -> value.
    """

    fields: Mapping[str, int]
    groups: int
    extra: Mapping[str, int]


def head_counts(model_class: type, config: Any) -> Iterator[HeadCounts]:
    """Yield the fields that count heads, with those that count key-value heads beside them."""
    numbers = {path: value for path, value in probing.number_fields(config) if isinstance(value, int)}
    base = probing.base_shapes(model_class, config)
    for path, heads in numbers.items():
        if not _QUERY_HEADS.search(path) or _SHARED_HEADS.search(path):
            continue
        holder = path.rpartition(".")[0]
        shared = next((p for p in numbers if _SHARED_HEADS.search(p) and p.rpartition(".")[0] == holder), None)
        groups = numbers[shared] if shared and heads % numbers[shared] == 0 else heads
        fields = ({shared: 1} if shared and groups == numbers[shared] else {}) | {path: heads // groups}
        size = f"{holder}.{_HEAD_SIZE}" if holder else _HEAD_SIZE
        yield HeadCounts(fields, groups, _fixed_head_size(model_class, config, size, heads, base))


def _fixed_head_size(model_class: type, config: Any, path: str, heads: int, base: Shapes) -> dict[str, int]:
    """Return the head size to write down where the model would derive it from width and heads, if it reads one."""
    holder = probing.read_field(config, path.rpartition(".")[0]) if "." in path else config
    width = getattr(holder, "hidden_size", None)
    if getattr(holder, _HEAD_SIZE, None) is not None or not isinstance(width, int) or width % heads:
        return {}
    written = probing.with_fields(config, {path: width // heads})
    return {path: width // heads} if probing.try_shapes(model_class, written) == base else {}


def head_axes(model: Any) -> tuple[Axis, ...]:
    """Return the axes whose units are whole groups of heads; only class and config of `model` are looked at.

    Raises:
        ArchitectureError: if there is none, with the reason.
    """
    found = find_head_axes(model)
    if isinstance(found, str):
        raise ArchitectureError(
            f"expected attention heads of {type(model).__name__} that can be removed, found none: {found}; use "
            "hidden (the width, and heads with it), ffn, layers, or structure='unstructured'"
        )
    return found


def find_head_axes(model: Any) -> tuple[Axis, ...] | str:
    """Return the axes as `head_axes` does, or the reason why there is none."""
    key = (type(model), json.dumps(probing.config_of(model).to_dict(), sort_keys=True, default=str))
    if key not in _CACHE:
        while len(_CACHE) >= _CACHE_SIZE:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _head_axes(type(model), model.config, probe(model))
    return _CACHE[key]


def _head_axes(model_class: type, config: Any, anatomy: Anatomy) -> tuple[Axis, ...] | str:
    layer_of = layer_lookup([prefix for axis in anatomy.named("layers") for prefix in axis.stacks])
    found, reason = [], "its config has no field that counts attention heads"
    for counts in head_counts(model_class, config):
        if counts.groups < 2:
            reason = "all heads share their keys and values, so none can go alone"
            continue
        groups = _groups(model_class, config, counts, anatomy, layer_of)
        if isinstance(groups, str):
            reason = groups
            continue
        pieces = tuple(piece for group in groups for piece in group.slices)
        fields, extra = tuple(counts.fields.items()), tuple(counts.extra.items())
        axis = Axis("heads", fields[0][0], counts.groups, pieces, (), tuple(groups), fields, extra)
        found.append(replace(axis, legal=_legal(model_class, config, axis)))
    return tuple(found) or reason


def _legal(model_class: type, config: Any, axis: Axis) -> tuple[int, ...]:
    """Return the numbers of units that the config accepts; () if it accepts all."""
    built = {n: probing.try_fields(model_class, config, axis.values(n), is_reloaded=True) for n in range(1, axis.size)}
    legal = tuple(size for size, shapes in built.items() if not isinstance(shapes, str))
    return () if len(legal) == len(built) else (*legal, axis.size)


def _groups(
    model_class: type, config: Any, counts: HeadCounts, anatomy: Anatomy, layer_of: Any
) -> list[UnitGroup] | str:
    pieces = _pieces(model_class, config, counts, layer_of)
    if isinstance(pieces, str):
        return pieces
    small = twin_config(model_class, probing.with_fields(config, counts.extra), anatomy)
    trial = _pieces(model_class, small, counts, layer_of)
    if isinstance(trial, str):
        return trial
    try:
        twin = Twin(model_class, small)
    except ArchitectureError as error:
        return str(error)
    blocks = _blocks(trial)
    for layout, tied in itertools.product(_layouts(trial, counts), (False, True)):
        moves = _moves(blocks, layout, counts, tied)
        if moves is not None and twin.is_unmoved_by(moves):
            return _unit_groups(_blocks(pieces), layout, counts, tied)
    return "no order of entries was found in which whole heads can be told apart"


def _pieces(model_class: type, config: Any, counts: HeadCounts, layer_of: Any) -> list[AxisSlice] | str:
    """Return the dimensions that shrink when one group of heads goes."""
    config = probing.with_fields(config, counts.extra)
    now = {path: heads * counts.groups for path, heads in counts.fields.items()}
    fewer = {path: heads * (counts.groups - 1) for path, heads in counts.fields.items()}
    larger = probing.base_shapes(model_class, probing.with_fields(config, now))
    smaller = probing.try_shapes(model_class, probing.with_fields(config, fewer))
    if isinstance(smaller, str):
        return f"the size of a head follows from the width ({smaller})"
    if smaller == larger:
        return "the size of a head follows from the width, so fewer heads are larger ones"
    found = []
    for name, shape in larger.items():
        low = smaller.get(name, ())
        if len(low) != len(shape):
            return "fewer heads change which parameters there are"
        for dim, (high, less) in enumerate(zip(shape, low, strict=True)):
            if high != less and (high < less or (high - less) * counts.groups > high):
                return "the size of a head follows from the width, so fewer heads are larger ones"
            if high != less:
                found.append(AxisSlice(name, dim, high - less, layer_of(name)))
    if any(larger[p.parameter][p.dim] != p.per_unit * counts.groups for p in found):
        return "the size of a head follows from the width, so fewer heads are larger ones"
    return found


def _pattern(piece: AxisSlice) -> str:
    return f"{re.sub(r'[0-9]+', '*', piece.parameter)}/{piece.dim}"


def _blocks(pieces: Sequence[AxisSlice]) -> dict[str, list[AxisSlice]]:
    """Return the pieces of each attention block, by the module that holds them."""
    holders = {piece: piece.parameter.split(".")[:-1] for piece in pieces}
    readers = [p for p in pieces if p.dim == 1 and p.parameter.endswith("weight")]
    found: dict[str, list[AxisSlice]] = {}
    for reader in readers:
        path = holders[reader]
        members: list[AxisSlice] = []
        while path and len({tuple(holders[m]) for m in members}) < 2:
            path = path[:-1]
            members = [p for p in pieces if holders[p][: len(path)] == path]
        found.setdefault(".".join(path), members)
    return found


Layout = Mapping[str, str]


def _layouts(pieces: Sequence[AxisSlice], counts: HeadCounts) -> Iterator[Layout]:
    """Yield guesses at the order of entries by pattern: whole heads side by side first."""
    options = {}
    for piece in pieces:
        # Only a matrix that makes several of query, key and value has a choice.
        is_fused = piece.per_unit % (max(counts.fields.values()) + 2) == 0
        options[_pattern(piece)] = _ORDERS if is_fused else _ORDERS[:1]
    for choice in itertools.product(*options.values()):
        yield dict(zip(options, choice, strict=True))


def _laid_out(piece: AxisSlice, order: str, counts: HeadCounts) -> list[AxisSlice]:
    """Return the runs of entries that `order` says a group of heads has in `piece`; [] if it cannot be so."""
    if order == "side by side":
        return [replace(piece, run=piece.per_unit)]
    if order == "far apart":
        return [piece]
    queries = max(counts.fields.values())
    size, rest = divmod(piece.per_unit, queries + 2)
    if rest:
        return []
    found, start = [], 0
    for heads in (queries, 1, 1):
        found.append(replace(piece, per_unit=heads * size, run=heads * size, start=start))
        start += heads * size * counts.groups
    return found


def _moves(
    blocks: Mapping[str, Sequence[AxisSlice]], layout: Layout, counts: HeadCounts, tied: bool
) -> list[tuple[AxisSlice, torch.Tensor]] | None:
    """Return a permutation of the groups of heads of each block, the same in blocks of one kind if they are tied."""
    orders: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    found = []
    for path, members in blocks.items():
        key = _kind(path) if tied else path
        if key not in orders:
            orders[key] = _no_fixed_point(counts.groups, generator)
        for piece in members:
            laid = _laid_out(piece, layout[_pattern(piece)], counts)
            if not laid:
                return None
            found += [(part, orders[key]) for part in laid]
    return found


def _no_fixed_point(size: int, generator: torch.Generator) -> torch.Tensor:
    """Return a permutation that is not the identity."""
    while True:
        order = torch.randperm(size, generator=generator)
        if not torch.equal(order, torch.arange(size)):
            return order


def _kind(path: str) -> str:
    return re.sub(r"[0-9]+", "*", path)


def _unit_groups(
    blocks: Mapping[str, Sequence[AxisSlice]], layout: Layout, counts: HeadCounts, tied: bool
) -> list[UnitGroup]:
    found = []
    for path, members in blocks.items():
        slices = tuple(part for p in members for part in _laid_out(p, layout[_pattern(p)], counts))
        layer = members[0].layer or 0
        tie = _kind(path) if tied else ""
        found.append(UnitGroup(layer, path, counts.groups, slices, next(iter(counts.fields)), tie))
    return found
