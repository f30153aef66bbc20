"""Structures that `shrink` can remove: neurons, heads, channels of a whole model or of its stages, layers.

Level: state. Channels that are masked must not count in the statistics of norms, nor masked layers in anything, as
after `shrink`; forward hooks see to that, so the parameters stay plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_compress.architecture.anatomy import Axis, ffn_units, probe
from hf_compress.architecture.attention import head_axes
from hf_compress.architecture.cut import channel_norms
from hf_compress.architecture.shrink import removable_layers
from hf_compress.architecture.units import UnitGroup, kept_index, merge_tied
from hf_compress.architecture.verify import Narrowed, hand_on
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError
from hf_compress.pruning.structures import STRUCTURES, CoupledUnits, Prunable

_HOOKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class ChannelUnits(CoupledUnits):
    """Units that norms look at: they see only those that are kept.

    Args:
        group: the units.
        model: the model.
        norms: the hooks of the model's norms, by module; shared by all rows of units of the model.
        kept: bool, one entry a unit of the group; shared by the blocks of the group.
        block: which of the blocks of the group.
    """

    def __init__(
        self, group: UnitGroup, model: nn.Module, norms: dict[str, _NormHook], kept: torch.Tensor, block: int = 0
    ) -> None:
        super().__init__(group, dict(model.named_parameters()), block)
        self._all_kept = kept
        self._norms = {}
        for path, parameter in channel_norms(model, self.parameters).items():
            if path not in norms:
                norms[path] = _NormHook(model.get_submodule(path))
            self._norms[parameter] = norms[path]

    def applied(self, keep: torch.Tensor) -> None:
        """Tell the norms which channels there are."""
        self._all_kept[self._units] = keep.cpu()
        units = self._all_kept.nonzero().flatten()
        for piece in self.group.slices:
            if piece.parameter in self._norms:
                length = len(self.parameters[piece.parameter])
                index = kept_index([(piece, units, self.group.count)], length)
                self._norms[piece.parameter].kept = None if len(index) == length else index


class _NormHook:
    """Replaces the output of a norm by that over the channels that are kept."""

    def __init__(self, module: nn.Module) -> None:
        self.kept: torch.Tensor | None = None
        self._narrowed = Narrowed(module, torch.arange(0))
        _replace_hook(module, self)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Return the narrowed output; None, which changes nothing, while all channels are there."""
        if self.kept is None or module is not self._narrowed.module:
            return None
        self._narrowed.kept = self.kept
        return self._narrowed(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _NormHook:
        """Return itself: a copied norm is an ordinary one."""
        return self


def _replace_hook(module: nn.Module, hook: Any) -> None:
    # A second training of the same model must not see the masks of the first.
    if module in _HOOKS:
        _HOOKS[module].remove()
    _HOOKS[module] = module.register_forward_hook(hook, with_kwargs=True)


class LayerUnits:
    """Whole layers of a stack; a masked one hands on what it was given.

    Args:
        axis: of the stack.
        model: the model.
        removable: for each layer whether it can go.
    """

    is_local = False
    legal: Sequence[int] = ()

    def __init__(self, axis: Axis, model: nn.Module, removable: Sequence[bool]) -> None:
        self.name, self.size, self.shape = axis.field, axis.size, (axis.size,)
        self._removable = torch.tensor(removable)
        prefixes = [[f"{stack}{i}." for stack in axis.stacks] for i in range(axis.size)]
        named = dict(model.named_parameters())
        self._names = [[name for name in named if name.startswith(tuple(of_layer))] for of_layer in prefixes]
        self.parameters = {name: named[name] for names in self._names for name in names}
        self._kept = [True] * axis.size
        for i, of_layer in enumerate(prefixes):
            for prefix in of_layer:
                _replace_hook(model.get_submodule(prefix[:-1]), self._hook(i))

    def _hook(self, layer: int) -> Any:
        def skip(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return None if self._kept[layer] else hand_on(module, args, kwargs, output)

        return skip

    def scores(self, entries: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
        """Return one score a layer, over all its entries."""
        found = []
        for names in self._names:
            count = sum(entries[name].numel() for name in names)
            values = (entries[name].float() for name in names)
            if reduction == "mean":
                found.append(sum(v.sum() for v in values) / count)
            else:
                found.append((sum(v.square().sum() for v in values) / count).sqrt())
        return torch.stack(found)

    def protect(self, scores: torch.Tensor) -> torch.Tensor:
        """Raise the layers that cannot go, the last one among them."""
        return scores.masked_fill(~self._removable.to(scores.device), torch.inf)

    def kept(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Look at one entry of each layer."""
        return torch.stack([masks[names[0]].flatten()[0] for names in self._names])

    def masks(self, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return one mask a parameter, all True or all False."""
        return {
            name: stays.expand(self.parameters[name].shape).clone()
            for stays, names in zip(keep, self._names, strict=True)
            for name in names
        }

    def applied(self, keep: torch.Tensor) -> None:
        """Note which layers do anything."""
        self._kept = keep.tolist()


@STRUCTURES.register("ffn")
def ffn(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Whole neurons of the feed-forward layers."""
    if not probe(model).named("ffn"):
        axes = [axis for axis in find_width_axes(model)[0] if axis.name == "ffn"]
        if axes:
            return _channels(model, axes)
    parameters = dict(model.named_parameters())
    return [CoupledUnits(group, parameters) for group in ffn_units(model)]


@STRUCTURES.register("heads")
def heads(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Whole attention heads by key-value head."""
    norms: dict[str, _NormHook] = {}
    found: list[Prunable] = []
    for axis in head_axes(model):
        for group in merge_tied(axis.groups):
            units = ChannelUnits(group, model, norms, torch.ones(group.count, dtype=torch.bool))
            units.legal = axis.legal
            found.append(units)
    return found


@STRUCTURES.register("hidden")
def hidden(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Channels of the hidden width, the same ones in all layers, with as large a part of what follows from it."""
    return _channels(model, _axes(model, "hidden"))


@STRUCTURES.register("filters")
def filters(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Channels of each stage, such as those of a convolutional network."""
    return _channels(model, _axes(model, "filters"))


@STRUCTURES.register("layers")
def layers(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[Prunable]:
    """Whole layers of each stack that has more than one."""
    found = [
        LayerUnits(axis, model, removable) for axis, removable in removable_layers(model).items() if axis.size > 1
    ]
    if not found:
        raise ArchitectureError(f"expected layers of {type(model).__name__} that can be removed, found none")
    return list(found)


def _axes(model: nn.Module, name: str) -> list[Axis]:
    found, reasons = find_width_axes(model)
    axes = [axis for axis in found if axis.name == name]
    if not axes:
        why = "; ".join(f"{field}: {reason}" for field, reason in reasons.items()) or "no config field says one"
        raise ArchitectureError(
            f"structure={name!r}: expected channels of {type(model).__name__} that can be removed, found none: {why}"
        )
    return axes


def _channels(model: nn.Module, axes: Sequence[Axis]) -> list[Prunable]:
    norms: dict[str, _NormHook] = {}
    found: list[Prunable] = []
    for axis in axes:
        sizes = axis.legal or range(1, axis.size + 1)
        for i, group in enumerate(axis.groups):
            kept = torch.ones(group.count, dtype=torch.bool)
            for block in range(group.blocks):
                units = ChannelUnits(group, model, norms, kept, block)
                units.legal = [axis.counts(size)[i] // group.blocks for size in sizes]
                found.append(units)
    return found
