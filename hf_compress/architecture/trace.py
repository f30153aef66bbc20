"""Which entries of which parameters stand for the same channels, found by following a permutation through a model.

Level: state. Channels are permuted where they are made; whatever then reads neither what it read before nor the same
permuted has to be permuted too. No line is about any architecture or what its forward pass computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.parts import Part, runs
from hf_compress.architecture.twin import Twin, is_close
from hf_compress.architecture.units import AxisSlice, permuted_index
from hf_compress.architecture.verify import outputs
from hf_compress.errors import ArchitectureError

# How many parts are looked at, and how many of them at once, where what is read fits nothing.
_NEAREST = 8
_TOGETHER = 4
# Passes before a search is given up. No architecture of the tests needs more than 19.
_TRIES = 64


@dataclass(frozen=True)
class Space:
    """Entries that stand for the same channels.

    Args:
        slices: where they are.
        size: how many channels.
        blocks: into how many blocks of equal size they fall (heads), between which none can move; 1: they are free.
        has_readers: whether any module reads them; scores of queries and keys are read by none.
        is_heads: whether each is a head.
    """

    slices: tuple[AxisSlice, ...]
    size: int
    blocks: int
    has_readers: bool
    is_heads: bool


class _Stop(Exception):
    """Ends a forward pass at the first call that does not fit."""


@dataclass(frozen=True)
class _Call:
    module: str
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


_Chosen = dict[Part, tuple[AxisSlice, ...]]


class Tracer:
    """Finds the spaces of a model.

    Args:
        twin: a small model with random weights.
        parts: those of its parameters that are to be told apart.
        heads: the numbers of heads that it may have.
        moves_heads: whether heads move as a whole; otherwise their entries move within each.
    """

    def __init__(self, twin: Twin, parts: Sequence[Part], heads: Sequence[int], moves_heads: bool) -> None:
        self._twin, self._parts, self._heads, self._moves_heads = twin, parts, heads, moves_heads
        names = {id(p): name.rpartition(".")[0] for name, p in twin.model.named_parameters()}
        self._watched = []
        for name, module in twin.model.named_modules():
            own = next(module.parameters(recurse=False), None)
            if own is not None or next(module.children(), None) is None:
                # Modules with tied weights count as the one that has them first.
                self._watched.append((name if own is None else names[id(own)], module))
        self._calls: list[_Call] = []
        self._outputs = self._run(self._calls.append)
        self._first = {call.module: i for i, call in reversed(list(enumerate(self._calls)))}
        self.stuck = ""

    def spaces(self) -> list[Space]:
        """Return the spaces, each part in one.

        Raises:
            ArchitectureError: if a part belongs to none, with the module where the channels cannot be told apart.
        """
        free = dict.fromkeys(self._parts)
        found: list[Space] = []
        idle = [part for part in free if not self._is_called(part.module)]
        for part in idle:
            del free[part]
        while free:
            seed = min((p for p in free if p.side in ("out", "own")), key=self._rank, default=None)
            traced = self._trace(seed, list(free)) if seed else None
            if traced is None:
                module = self.stuck or next(iter(free)).module
                raise ArchitectureError(f"its channels cannot be told apart at {module or 'its outputs'}")
            chosen, space = traced
            found.append(space)
            for part in chosen:
                del free[part]
        return _with_idle(found, idle)

    def _is_called(self, module: str) -> bool:
        return module in self._first or any(name.startswith(f"{module}.") for name in self._first)

    def _rank(self, part: Part) -> int:
        inside = (i for name, i in self._first.items() if name.startswith(f"{part.module}."))
        return self._first[part.module] if part.module in self._first else min(inside)

    def _trace(self, seed: Part, free: list[Part]) -> tuple[_Chosen, Space] | None:
        """Return what has to be permuted together with `seed`, heads first."""
        heads = [n for n in self._heads if n > 1 and seed.size % n == 0 and seed.size // n > 1]
        for number in (*heads, 1):
            is_whole = self._moves_heads and number > 1
            order = _shuffled(number, 1) if is_whole else _shuffled(seed.size, number)
            # Entries of whole heads lie side by side, at least those of the queries.
            for layout in seed.laid_out(len(order))[: -1 if is_whole else None]:
                chosen = self._follow({seed: layout}, order, free)
                if chosen is not None:
                    return chosen, self._space(seed, chosen, len(order), 1 if is_whole else number)
        return None

    def _space(self, seed: Part, chosen: _Chosen, size: int, blocks: int) -> Space:
        freely = chosen if size == seed.size else {p: next(iter(p.laid_out(seed.size)), ()) for p in chosen}
        if (size, blocks) != (seed.size, 1) and all(freely.values()):
            if self._progress(freely, _shuffled(seed.size, 1)) is None:
                chosen, size, blocks = freely, seed.size, 1
        pieces = tuple(piece for slices in chosen.values() for piece in slices)
        has_readers = any(part.side == "in" for part in chosen)
        return Space(pieces, size, blocks, has_readers, is_heads=size != seed.size)

    def _follow(self, chosen: _Chosen, order: torch.Tensor, free: list[Part]) -> _Chosen | None:
        while (reached := self._progress(chosen, order)) is not None:
            more = self._mended(chosen, order, reached, free)
            if more is None:
                self.stuck = self._calls[reached[0]].module if reached[0] < len(self._calls) else ""
                return None
            chosen = more
        return chosen

    def _mended(
        self, chosen: _Chosen, order: torch.Tensor, reached: tuple[int, bool], free: list[Part]
    ) -> _Chosen | None:
        """Return `chosen` with the fewest parts more that bring a pass further than `reached`."""
        near = self._candidates(chosen, reached, free)
        for more in itertools.islice(_enlarged(chosen, near, len(order)), _TRIES):
            further = self._progress(more, order)
            if further is None or further > reached:
                return more
        return None

    def _candidates(self, chosen: _Chosen, reached: tuple[int, bool], free: list[Part]) -> list[Part]:
        """Return the parts that can be at fault: its own, or what made the odd thing it was handed."""
        index, has_inputs = reached
        name = self._calls[index].module if index < len(self._calls) else ""
        others = [part for part in free if part not in chosen]
        own = [part for part in others if part.module == name]
        inside = [part for part in others if part.module.startswith(f"{name}.") and part.side != "in"]
        if has_inputs and own and not inside:
            return own
        makers = [part for part in others if part.side != "in" and part.module != name]
        around = [part for part in makers if name.startswith(f"{part.module}.") or not part.module]
        before = [part for part in makers if part not in around and self._last_call(part.module, index) >= 0]
        before.sort(key=lambda part: -self._last_call(part.module, index))
        return [*(own if has_inputs else []), *around, *before][:_NEAREST]

    def _last_call(self, module: str, index: int) -> int:
        return max((i for i in range(index) if self._calls[i].module == module), default=-1)

    def _progress(self, chosen: _Chosen, order: torch.Tensor) -> tuple[int, bool] | None:
        """Return the first call that does not fit, and whether its inputs do; None if all fit, outputs too."""
        partial = self._partly(chosen, order)
        seen = itertools.count()
        stopped: list[tuple[int, bool]] = []

        def check(call: _Call) -> None:
            index = next(seen)
            base = self._calls[index]
            # What is read and does no harm, such as a tensor of which only the shape counts, need not fit.
            index_of = partial.get(call.module)
            fits = _fits(base.outputs, call.outputs, order) if index_of is None else _is_indexed(base, call, index_of)
            if not fits:
                stopped.append((index, _fits(base.inputs, call.inputs, order)))
                raise _Stop

        with self._twin.moved((piece, order) for slices in chosen.values() for piece in slices):
            try:
                found = self._run(check)
            except _Stop:
                return stopped[0]
        is_right = all(_fits((value,), (found[name],), order) for name, value in self._outputs.items())
        return None if is_right else (len(self._calls), False)

    def _partly(self, chosen: _Chosen, order: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return for each module of which only some outputs are permuted which ones its outputs then are."""
        found: dict[str, torch.Tensor] = {}
        for part, slices in chosen.items():
            if part.side == "out" and slices[0].block:
                length = self._twin.model.get_parameter(slices[0].parameter).shape[slices[0].dim]
                moved = permuted_index(slices[0], order, length)
                before = found.get(part.module)
                found[part.module] = moved if before is None else before[moved]
        return found

    def _run(self, watch: Any) -> dict[str, torch.Tensor]:
        def hook(name: str) -> Any:
            def call(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                watch(_Call(name, tuple(_tensors((args, kwargs))), tuple(_tensors(output))))

            return call

        handles = [m.register_forward_hook(hook(name), with_kwargs=True) for name, m in self._watched]
        try:
            return outputs(self._twin.model, self._twin.inputs)
        finally:
            for handle in handles:
                handle.remove()


def _enlarged(chosen: _Chosen, near: Sequence[Part], size: int) -> Iterator[_Chosen]:
    """Yield `chosen` with one part more, in each layout, then with two, and so on."""
    for number in range(1, min(_TOGETHER, len(near)) + 1):
        for parts in itertools.combinations(near, number):
            options = [part.laid_out(size) for part in parts]
            # All in one order: what is made together is laid out alike.
            for i in range(max(map(len, options)) if all(options) else 0):
                layouts = (found[min(i, len(found) - 1)] for found in options)
                yield {**chosen, **dict(zip(parts, layouts, strict=True))}


def _with_idle(found: list[Space], idle: Sequence[Part]) -> list[Space]:
    """Return the spaces with the parts of modules that no pass calls: they go where their size has its first place."""
    for part in idle:
        place = next((i for i, space in enumerate(found) if part.laid_out(space.size)), None)
        if place is None:
            raise ArchitectureError(f"no forward pass uses {part.module}, so nothing says which channels it has")
        pieces = (*found[place].slices, *part.laid_out(found[place].size)[0])
        found[place] = replace(found[place], slices=pieces)
    return found


def _shuffled(size: int, blocks: int) -> torch.Tensor:
    """Return a permutation within each of `blocks` blocks of equal size."""
    generator = torch.Generator().manual_seed(0)
    width = size // blocks
    while True:
        order = torch.cat([i * width + torch.randperm(width, generator=generator) for i in range(blocks)])
        if not torch.equal(order, torch.arange(size)):
            return order


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.detach().clone()
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def _fits(base: Sequence[torch.Tensor], found: Sequence[torch.Tensor], order: torch.Tensor) -> bool:
    """Return whether each tensor is what it was, or that with its channels permuted."""
    return all(_is_moved(a, b, order) for a, b in zip(base, found, strict=True))


def _is_indexed(base: _Call, found: _Call, index: torch.Tensor) -> bool:
    """Return whether the outputs are those of `base` in another order along the last dimension."""
    pairs = zip(base.outputs, found.outputs, strict=True)
    return all(a.shape[-1] == len(index) and is_close(b, a[..., index]) for a, b in pairs)


def _is_moved(base: torch.Tensor, found: torch.Tensor, order: torch.Tensor) -> bool:
    if base.shape != found.shape:
        return False
    if is_close(found, base):
        return True
    size = len(order)
    for dim, length in enumerate(base.shape):
        if length % size:
            continue
        each = length // size
        for run in runs(each):
            index = permuted_index(AxisSlice("", 0, each, None, run=run), order, length)
            if is_close(found, base.index_select(dim, index)):
                return True
    return False
