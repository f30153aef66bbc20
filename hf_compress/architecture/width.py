"""Hidden width and the widths of stages: channels that go through many layers, with one ranking for all of them.

Level: state. Which entries stand for the same channels is found by `trace` on a small twin, and what comes out is
tried on the twin before it is offered, so no line is about any architecture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, Axis, probe
from hf_compress.architecture.attention import find_head_axes, head_counts
from hf_compress.architecture.cut import Plan, check_cut, cut
from hf_compress.architecture.lift import lift
from hf_compress.architecture.moved import Shape, Way, is_width
from hf_compress.architecture.parts import part_side, parts_of
from hf_compress.architecture.trace import Space, Tracer
from hf_compress.architecture.twin import Twin, twin_config
from hf_compress.architecture.units import AxisSlice, UnitGroup
from hf_compress.architecture.verify import OutputsDiffer
from hf_compress.errors import ArchitectureError

_CACHE: dict[tuple[type, str], tuple[tuple[Axis, ...], dict[str, str]]] = {}
_CACHE_SIZE = 16
# Some sizes a config refuses for reasons of its own, so more than one is tried.
_TRIALS = 3
_HEADS = re.compile(r"heads?$")


def find_width_axes(model: Any) -> tuple[tuple[Axis, ...], dict[str, str]]:
    """Return the axes called "hidden", "filters", "head_size", and "ffn" where plain modules do not show it.

    Args:
        model: only its class and config are looked at.
    """
    key = (type(model), json.dumps(probing.config_of(model).to_dict(), sort_keys=True, default=str))
    if key not in _CACHE:
        while len(_CACHE) >= _CACHE_SIZE:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _find(type(model), model.config, probe(model), find_head_axes(model))
    return _CACHE[key]


def _find(
    model_class: type, config: Any, anatomy: Anatomy, heads: tuple[Axis, ...] | str
) -> tuple[tuple[Axis, ...], dict[str, str]]:
    found: list[Axis] = []
    reasons: dict[str, str] = {}
    for axis in anatomy.axes:
        taken = {name for known in found for name, _ in known.fields}
        is_known = axis.name in ("ffn", "layers", "vocabulary") or bool(_HEADS.search(axis.field))
        is_candidate = axis.size > 1 and not is_known
        if axis.field in taken or not is_candidate:
            continue
        answer = _Search(model_class, config, anatomy, axis, heads).answer()
        if isinstance(answer, Axis):
            found += [answer] if answer.name else []
        elif answer:
            reasons[axis.field] = answer
    taken = {name for axis in found for name, _ in axis.fields}
    return tuple(found), {field: why for field, why in reasons.items() if field not in taken}


class _Search:
    """Finds out how one field of a config can make a model narrower.

    Args:
        model_class: class of the model.
        config: its config.
        anatomy: of the model.
        axis: of the field.
        heads: the axes of whole heads, or why there are none.
    """

    def __init__(
        self, model_class: type, config: Any, anatomy: Anatomy, axis: Axis, heads: tuple[Axis, ...] | str
    ) -> None:
        self._class, self._anatomy, self._axis = model_class, anatomy, axis
        place = axis.field.rpartition(".")[0]
        counted = list(head_counts(model_class, config))
        self._heads = [c for c in counted if all(field.rpartition(".")[0] == place for field in c.fields)]
        # What the model would derive from the width is written down, so that it stays.
        self._extra = {a.field: a.size for a in anatomy.axes if probing.read_field(config, a.field) is None}
        for head_axis in heads if isinstance(heads, tuple) else ():
            self._extra |= dict(head_axis.extra)
        self._follow_width = isinstance(heads, str)
        self._config = probing.with_fields(config, self._extra)
        self._meta = probing.build(model_class, self._config)
        self._unsaved = getattr(self._meta, "_keys_to_ignore_on_save", None) or ()
        self._prefixes = [prefix for a in anatomy.named("layers") for prefix in a.stacks]

    def answer(self) -> Axis | str:
        """Return the axis, the reason why there is none, or "" if the field is no width."""
        alone = Way((self._axis.field,), ()).shape(self._class, self._config)
        if alone.pieces and not is_width(alone, self._meta):
            return ""
        computed = [p.parameter for p in alone.pieces if p.parameter in self._unsaved]
        if computed:
            return f"{computed[0]} is computed from it and not saved"
        reason = ""
        for way in self._ways():
            found = self._try(way)
            if isinstance(found, Axis):
                return found
            reason = reason or found
        return reason

    def _ways(self) -> Iterator[Way]:
        others = {axis.field for axis in self._anatomy.axes if axis.name in ("ffn", "layers", "vocabulary")}
        numbers = [path for path, value in probing.number_fields(self._config) if value == self._axis.size]
        same = [p for p in numbers if p != self._axis.field and p not in others and not self._counts_rows(p)]
        heads = tuple(name for counts in self._heads for name in counts.fields) if self._follow_width else ()
        for more in [(), *((path,) for path in same), *([tuple(same)] if len(same) > 1 else [])]:
            # Fewer heads are faster than narrower ones.
            if heads:
                yield Way((self._axis.field, *more), heads)
            yield Way((self._axis.field, *more), ())

    def _counts_rows(self, path: str) -> bool:
        """Whether a field counts rows of tables, such as positions, and equals the width by chance."""
        alone = Way((path,), ()).shape(self._class, self._config)
        return {part_side(piece, self._meta) for piece in alone.pieces} == {"rows"}

    def _try(self, way: Way) -> Axis | str:
        try:
            real = way.shape(self._class, self._config)
            if not is_width(replace(way, heads=()).shape(self._class, self._config), self._meta):
                return ""
            small = way.shape(self._class, self._small_config(way))
            twin = Twin(self._class, small.config)
            spaces = self._spaces(twin, small, way)
            scores, norms = _divided(spaces, small)
            reason = ""
            # Some models divide by the root of a width: scores of attention, or what goes into a tied head.
            with_scores = [(*scores, norm) for norm in norms]
            for balance in dict.fromkeys([tuple(scores), (), *with_scores, *((norm,) for norm in norms)]):
                tried = _tried(twin.model, self._axis_of(small, small, spaces, balance))
                if not tried:
                    break
                reason = reason or tried
            else:
                return reason
            found = self._axis_of(real, small, spaces, balance)
        except ArchitectureError as error:
            return str(error)
        steps = (n for n in range(real.step, real.size, real.step) if real.size % n == 0)
        step = next((n for n in steps if self._is_legal(found, real.size - n)), None)
        if step is None:
            return f"the config accepts no smaller {self._axis.field}"
        # At the size of something else a model may leave out the projection between both.
        others = {n for _, n in probing.number_fields(self._config) if n and n < real.size and n % step == 0}
        refused = {n for n in others if not self._is_legal(found, n)}
        if step == 1 and not refused:
            return found
        return replace(found, legal=tuple(n for n in range(step, real.size + 1, step) if n not in refused))

    def _small_config(self, way: Way) -> Any:
        small = twin_config(self._class, self._config, self._anatomy)
        return probing.with_fields(small, dict.fromkeys(way.fields, probing.read_field(small, self._axis.field)))

    def _spaces(self, twin: Twin, small: Shape, way: Way) -> list[Space]:
        found = {counts.groups for counts in self._heads}
        if not way.heads:
            numbers = probing.number_fields(small.config)
            found |= {n for path, n in numbers if n and n > 1 and _HEADS.search(re.sub(r"\[\d+\]$", "", path))}
        heads = sorted(found)
        reason = ""
        options: list[str | int] = ["whole"] if way.heads else ["whole", "far apart", *heads]
        for fused in options:
            parts = parts_of(twin.model, small.pieces, fused, small.size)
            try:
                return Tracer(twin, parts, heads, bool(way.heads)).spaces()
            except ArchitectureError as error:
                reason = reason or str(error)
        raise ArchitectureError(reason)

    def _axis_of(
        self, to: Shape, small: Shape, spaces: Sequence[Space], balance: Sequence[tuple[Space, AxisSlice]]
    ) -> Axis:
        """Return the axis of the model that `to` describes, given the spaces of the twin."""
        found = []
        for space, layer, count, slices in lift(spaces, small, to, self._prefixes):
            name = slices[0].parameter.rpartition(".")[0] + (f"#{slices[0].start}" if slices[0].start else "")
            divided = tuple(p for p in slices if any(_is_alike(p, other) for s, other in balance if s is space))
            found.append(UnitGroup(layer, name, count, slices, self._axis.field, "", space.blocks, divided))
        if not found:
            raise ArchitectureError("no part of a small model of the same make moves with it")
        # The channels that go through most of the model come first.
        found.sort(key=lambda group: (group.count != to.size, -len(group.slices)))
        # The twin may have less of what is written down, such as neurons.
        fields, extra = tuple(to.shares.items()), tuple((f, probing.read_field(to.config, f)) for f in self._extra)
        axis = Axis("", self._axis.field, to.size, found[0].slices, (), tuple(found), fields, extra)
        return replace(axis, name=_name(axis, to, self._meta))

    def _is_legal(self, axis: Axis, size: int) -> bool:
        if any(
            group.count * size % axis.size or n % group.blocks
            for group, n in zip(axis.groups, axis.counts(size), strict=True)
        ):
            return False
        shapes = probing.try_fields(self._class, self._config, axis.values(size), is_reloaded=True)
        return not isinstance(shapes, str) and shapes.keys() == self._anatomy.shapes.keys()


def _name(axis: Axis, shape: Shape, model: Any) -> str:
    """Return what kind of width it is; "" if it is none that is known."""
    layers = [{piece.layer for piece in group.slices} for group in axis.groups]
    if all(len(found) == 1 and None not in found for found in layers):
        if any(_readers(group, model) > 1 for group in axis.groups):
            # A stream of its own in each layer.
            return ""
        blocks = {group.blocks for group in axis.groups}
        return "ffn" if blocks == {1} else "" if 1 in blocks else "head_size"
    matrices = {p.parameter for p in shape.pieces if len(shape.base[p.parameter]) > 1}
    if "[" in axis.field or 2 * sum(len(shape.base[name]) > 2 for name in matrices) > len(matrices):
        return "filters"
    return "hidden" if any(found != {None} for found in layers) else ""


def _readers(group: UnitGroup, model: Any) -> int:
    reading = (p.parameter for p in group.slices if part_side(p, model) == "in")
    return len({name.rpartition(".")[0] for name in reading})


_Divided = list[tuple[Space, AxisSlice]]


def _divided(spaces: Sequence[Space], small: Shape) -> tuple[_Divided, _Divided]:
    """Return the entries that may have to make good for a division: of queries, and of norms outside the layers."""
    scores, norms = [], []
    for space in spaces:
        # Nothing reads queries and keys but each other, be it one head or several.
        matrices = {p.parameter for p in space.slices if len(small.base[p.parameter]) == 2}
        if not space.has_readers and (space.blocks > 1 or len(matrices) > 1):
            first = space.slices[0]
            path = first.parameter.rpartition(".")[0]
            scores += [
                (space, p) for p in space.slices if p.parameter.rpartition(".")[0] == path and p.start == first.start
            ]
        else:
            is_norm = (p.layer is None and len(small.base[p.parameter]) == 1 for p in space.slices)
            norms += [(space, p) for p, fits in zip(space.slices, is_norm, strict=True) if fits]
    return scores, norms


def _is_alike(piece: AxisSlice, other: AxisSlice) -> bool:
    """Whether both are the same entries of two layers, or of the small and the large model."""
    names = [re.sub(r"\d+", "*", p.parameter) for p in (piece, other)]
    is_first = (piece.start == 0) == (other.start == 0)
    return names[0] == names[1] and piece.dim == other.dim and is_first


def _tried(model: Any, axis: Axis) -> str:
    """Return why a model made narrower along `axis` does not do what the full one does; "" if it does."""
    sizes = [n for n in range(axis.size // 2, axis.size) if all(_fits(g, n, axis.size) for g in axis.groups)]
    reason = f"no smaller {axis.field} leaves whole units in all its parts"
    for size in sizes[:_TRIALS]:
        units = {}
        for group, number in zip(axis.groups, axis.counts(size), strict=True):
            blocks = torch.arange(group.count).view(group.blocks, -1)
            # Not the first ones: what is cut at the wrong end must show.
            units[group] = blocks[:, -(number // group.blocks) :].flatten()
        plan = Plan(fields=axis.values(size), units=units)
        differs = (
            f"a forward pass with fewer channels differs in more than that, as if it used {axis.field} as a number"
        )
        try:
            check_cut(cut(model, plan, is_saved=False), model, plan)
        except OutputsDiffer:
            # Other outputs at one size are other outputs at the next.
            return differs
        except ArchitectureError as error:
            reason = f"{differs} ({error})"
        else:
            return ""
    return reason


def _fits(group: UnitGroup, size: int, full: int) -> bool:
    number, rest = divmod(group.count * size, full)
    return rest == 0 and number % group.blocks == 0 and number > 0
