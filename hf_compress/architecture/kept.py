"""What stays of each axis: turns the options of `shrink` into indices, or refuses them.

Level: state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from hf_compress.architecture.anatomy import Anatomy, Axis
from hf_compress.architecture.units import nonzero_units, unit_scores
from hf_compress.errors import ArchitectureError, did_you_mean

# None, a whole number, a fraction, a list of indices (of lists, for units), or a dict from config field to these.
Amount: TypeAlias = Any

_WHAT = {
    "ffn": "a feed-forward width",
    "heads": "attention heads",
    "layers": "a number of layers",
    "hidden": "a hidden width",
    "filters": "widths of stages",
}


def choose_layers(anatomy: Anatomy, layers: Amount) -> dict[Axis, list[int]]:
    """Return the indices of the layers that stay, for each stack that was asked for.

    Raises:
        ArchitectureError: if the model has no such stack, or the number or an index is illegal.
    """
    if layers is None:
        return {}
    axes = [axis for axis in anatomy.named("layers") if axis.size > 1] or list(anatomy.named("layers"))
    chosen = by_axis("layers", axes, layers)
    if not isinstance(layers, Mapping) and len(axes) > 1:
        fields = {axis.field: axis.size for axis in axes}
        raise ArchitectureError(
            f"layers: expected a dict from config field to layers, since this model has {len(axes)} stacks "
            f"({fields}), found {layers!r}; write for example layers={{{axes[0].field!r}: {axes[0].size - 1}}}"
        )
    return {axis: _layer_indices(axis, value) for axis, value in chosen.items()}


def alive_layers(anatomy: Anatomy, model: nn.Module) -> dict[Axis, list[int]]:
    """Return the indices of the layers that are not entirely zero, for each stack that has a zero one."""
    parameters = list(model.named_parameters())
    found = {}
    for axis in anatomy.named("layers"):
        kept = [
            i
            for i in range(axis.size)
            if any(bool(p.any()) for n, p in parameters if n.startswith(tuple(f"{s}{i}." for s in axis.stacks)))
        ]
        if len(kept) < axis.size:
            found[axis] = kept or [axis.size - 1]
    return found


def choose_units(
    option: str,
    axes: Sequence[Axis],
    amount: Amount,
    parameters: Mapping[str, torch.Tensor],
    removed: Collection[str],
    multiple: int = 1,
) -> dict[Axis, list[torch.Tensor]]:
    """Return the kept units of each group of each axis, ascending, all of one length.

    Args:
        option: "ffn" or "heads", for messages.
        axes: whose units may go.
        amount: as in `shrink`.
        parameters: of the model, by full name.
        removed: names of groups whose layer goes; they have no say in the common width.
        multiple: what a fraction is rounded to.

    Raises:
        ArchitectureError: if there is no such axis, or the number or a unit is illegal.
    """
    if amount is None:
        return {axis: _without_zeros(axis, parameters, removed) for axis in axes}
    if isinstance(amount, Sequence) and not isinstance(amount, str) and len(axes) > 1:
        raise ArchitectureError(
            f"{option}: expected a dict from config field to lists of units, since this model has {len(axes)} fields "
            f"({', '.join(axis.field for axis in axes)}), found one list"
        )
    chosen = by_axis(option, list(axes), amount)
    return {axis: _unit_indices(option, axis, value, parameters, multiple) for axis, value in chosen.items()}


def unit_count(option: str, axis: Axis, amount: Amount) -> int:
    """Return the number of units that a whole number or a fraction means.

    Raises:
        ArchitectureError: if it is neither, or no legal number.
    """
    if isinstance(amount, float):
        return nearest_legal(axis, checked_width(option, amount, axis.size), 1)
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise ArchitectureError(
            f"{option}: expected a whole number from 1 to {axis.size} or a fraction below 1, found {amount!r}"
        )
    check_number(option, axis, amount)
    return amount


def nearest_legal(axis: Axis, size: int, multiple: int) -> int:
    """Return the size nearest to `size` that the config accepts and `multiple` divides; the size of now if none."""
    sizes = axis.legal or range(1, axis.size + 1)
    rounded = [legal for legal in sizes if legal % multiple == 0] or [axis.size]
    return min(rounded, key=lambda legal: (abs(legal - size), -legal))


def by_axis(option: str, axes: list[Axis], value: Amount) -> dict[Axis, Amount]:
    """Return what was asked for of each axis.

    Raises:
        ArchitectureError: if there is no axis, or none of a given name.
    """
    what = _WHAT[option]
    if not axes:
        raise ArchitectureError(
            f"{option}: expected {what} that the config can change, found none; see inspect_model(model)"
        )
    if not isinstance(value, Mapping):
        return dict.fromkeys(axes, value)
    known = {axis.field: axis for axis in axes}
    for name in value:
        if name not in known:
            near = did_you_mean(name, known)
            raise ArchitectureError(f"{option}: expected one of {', '.join(known)}, found {name!r}{near}")
    return {known[name]: amount for name, amount in value.items()}


def _layer_indices(axis: Axis, value: Amount) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        check_number("layers", axis, value)
        return evenly_spaced(value, axis.size)
    if not isinstance(value, (list, tuple, range)):
        raise ArchitectureError(
            f"layers: expected a whole number from 1 to {axis.size} or a list of indices, found {value!r}"
        )
    return check_indices("layers", axis, list(value))


def evenly_spaced(number: int, size: int) -> list[int]:
    """Return `number` of `size` indices at equal distances, first and last included; one: the last.

    The head was trained on the outputs of the last layer, so that is never the one that goes.
    """
    if number == 1:
        return [size - 1]
    # The nearest index; halves go down, where layers do more of the work.
    return [(2 * i * (size - 1) + number - 2) // (2 * (number - 1)) for i in range(number)]


def width_of(fraction: float, size: int) -> int:
    """Return the number of units that a fraction of `size` means, at least 1."""
    return max(1, round(fraction * size))


def checked_width(option: str, fraction: float, size: int) -> int:
    """Return the number of units that a fraction means.

    Raises:
        ArchitectureError: if it does not lie above 0 and below 1.
    """
    if not 0 < fraction < 1:
        raise ArchitectureError(
            f"{option}: expected a fraction above 0 and below 1, found {fraction}; nearest legal: "
            f"{1 / size if fraction <= 0 else (size - 1) / size:.4g}"
        )
    return width_of(fraction, size)


def _unit_indices(
    option: str, axis: Axis, value: Amount, parameters: Mapping[str, torch.Tensor], multiple: int
) -> list[torch.Tensor]:
    if isinstance(value, float):
        value = checked_width(option, value, axis.size)
        value = nearest_legal(axis, value, multiple) if multiple > 1 else value
    if isinstance(value, int) and not isinstance(value, bool):
        check_number(option, axis, value)
        return [strongest(scores, value) for scores in _tied_scores(axis, parameters)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ArchitectureError(
            f"{option}: expected a whole number from 1 to {axis.size}, a fraction or a list of units per layer, "
            f"found {value!r}"
        )
    return _explicit_units(option, axis, value)


def _tied_scores(axis: Axis, parameters: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the norms of the units of each group; of tied groups the norm over all of them."""
    squares = [unit_scores(group, parameters).square().cpu() for group in axis.groups]
    total: dict[str, torch.Tensor] = {}
    for group, own in zip(axis.groups, squares, strict=True):
        total[group.tie] = total.get(group.tie, torch.zeros_like(own)) + own
    pairs = zip(axis.groups, squares, strict=True)
    return [(total[group.tie] if group.tie else own).sqrt() for group, own in pairs]


def _explicit_units(option: str, axis: Axis, value: Sequence[Any]) -> list[torch.Tensor]:
    if len(value) != len(axis.groups):
        raise ArchitectureError(
            f"{option}: expected a list of units for each of {len(axis.groups)} layers, found {len(value)}"
        )
    units = [check_indices(option, axis, torch.as_tensor(layer).tolist()) for layer in value]
    lengths = sorted({len(layer) for layer in units})
    check_number(option, axis, lengths[-1])
    if len(lengths) > 1:
        raise ArchitectureError(
            f"{option}: expected the same number of units in every layer, because {axis.field} is one number, found "
            f"{lengths}; nearest legal: {lengths[-1]} in each"
        )
    first: dict[str, list[int]] = {}
    for group, layer in zip(axis.groups, units, strict=True):
        if group.tie and first.setdefault(group.tie, layer) != layer:
            raise ArchitectureError(
                f"{option}: expected the same units in all of {group.tie}, which share what is computed for one of "
                f"them, found {first[group.tie]} and {layer}"
            )
    return [torch.tensor(layer) for layer in units]


def check_number(option: str, axis: Axis, value: int) -> None:
    """Refuse a size that the config does not accept.

    Raises:
        ArchitectureError: with the nearest legal one.
    """
    if axis.legal and value not in axis.legal and 1 <= value <= axis.size:
        nearest = min(axis.legal, key=lambda size: (abs(size - value), -size))
        raise ArchitectureError(
            f"{option}: expected one of {', '.join(map(str, axis.legal))}, which the config accepts as {axis.field}, "
            f"found {value}; nearest legal: {nearest}"
        )
    if not 1 <= value <= axis.size:
        raise ArchitectureError(
            f"{option}: expected a whole number from 1 to {axis.size} ({axis.field}), found {value}; nearest legal: "
            f"{min(max(value, 1), axis.size)}"
        )


def check_indices(option: str, axis: Axis, value: Any) -> list[int]:
    """Return the indices that were given.

    Raises:
        ArchitectureError: if they are no ascending, distinct indices of units.
    """
    is_list = isinstance(value, list) and all(type(i) is int for i in value)
    if not is_list or not value or sorted(set(value)) != value or not 0 <= value[0] <= value[-1] < axis.size:
        shown = f"{value[:8]} and {len(value) - 8} more" if is_list and len(value) > 8 else f"{value!r}"
        legal = sorted({min(max(i, 0), axis.size - 1) for i in value}) if is_list else []
        nearest = f"; nearest legal: {legal}" if 0 < len(legal) <= 16 else ""
        raise ArchitectureError(
            f"{option}: expected ascending, distinct indices from 0 to {axis.size - 1} ({axis.field}), at least one, "
            f"found {shown}{nearest}"
        )
    return list(value)


def strongest(scores: torch.Tensor, number: int) -> torch.Tensor:
    """Return the indices of the `number` largest scores, ascending, on the CPU."""
    # Stable: among equals the first units stay, on every machine.
    return torch.argsort(scores, descending=True, stable=True)[:number].sort().values.cpu()


def _without_zeros(axis: Axis, parameters: Mapping[str, torch.Tensor], removed: Collection[str]) -> list[torch.Tensor]:
    alive = [nonzero_units(group, parameters).cpu() for group in axis.groups]
    either: dict[str, torch.Tensor] = {}
    for group, own in zip(axis.groups, alive, strict=True):
        either[group.tie] = either.get(group.tie, torch.zeros_like(own)) | own
    alive = [either[group.tie] if group.tie else own for group, own in zip(axis.groups, alive, strict=True)]
    counts = [int(a.sum()) for group, a in zip(axis.groups, alive, strict=True) if group.name not in removed]
    width = max([1, *counts])
    width = min([size for size in axis.legal if size >= width], default=width)
    # A layer that needs fewer keeps zero units up to the common width; the ones that go are all zero.
    return [strongest(a.float(), width) for a in alive]
