"""`shrink`: removes units, layers and channels, so that a smaller plain model with the same class remains.

Level: state. Legality is settled before anything is built; the input is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, Axis, probe
from hf_compress.architecture.attention import find_head_axes, head_axes
from hf_compress.architecture.cut import Plan, check_cut, check_matches_config, cut, expected_shapes, refuse_unsuitable
from hf_compress.architecture.kept import Amount, alive_layers, choose_layers, choose_units
from hf_compress.architecture.kept_channels import choose_channels
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError

_WIDTHS = ("hidden", "filters")


def shrink(
    model: Any,
    *,
    ffn: Amount = None,
    heads: Amount = None,
    layers: Amount = None,
    hidden: Amount = None,
    filters: Amount = None,
    multiple: int = 1,
    verify: bool = True,
) -> Any:
    """Return a smaller model of the same class, which stock `from_pretrained` loads once it is saved.

    Args:
        model: a plain transformers model (no adapters, not quantized); it is left as it is.
        ffn: feed-forward units to keep in each layer. None: drop those that are entirely zero, to one common width;
            a whole number, 1 to the width of now, or a fraction, above 0 and below 1: keep the strongest by L2 norm;
            a list: the kept units of each layer, all of one length. For models with several feed-forward fields also
            a dict from config field to any of these.
        heads: key-value heads to keep in each layer, with the query heads that read them, as `ffn`; for models whose
            config can say their number apart from the width.
        layers: layers to keep. None: drop those that are entirely zero; a whole number: evenly spaced, first and last
            included (one: the last); a list: their indices. For models with several stacks a dict from config field
            to either.
        hidden: channels of the hidden width to keep, the same in all layers, with as large a part of all that follows
            from the width. None: drop those that are zero everywhere; a whole number that the config accepts, or a
            fraction (the nearest that it accepts): keep the strongest by L2 norm over all parameters; a list: their
            indices; a dict from config field to any of these, among them that of the size of heads where the config
            says it apart from the width.
        filters: channels of each stage, as `hidden`, where the config says a width for each.
        multiple: what fractions of ffn, hidden and filters are rounded to, at least 1; kernels are fast at multiples
            of 8 on GPUs and of 16 on CPUs.
        verify: compare outputs with the masked full model on a made-up input.

    Returns:
        A new model with the dtype, device and mode of `model`; without anything to remove an equal copy.

    Raises:
        ArchitectureError: if the config cannot say that shape (before anything is built), or outputs differ.

    Source: Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models", drop from the top
        before fine-tuning (give a list for that); once a model is fine-tuned its last layer has to stay.
    """
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ArchitectureError(f"multiple: expected a whole number of at least 1, found {multiple!r}")
    widths, amounts = {"hidden": hidden, "filters": filters}, {"ffn": ffn, "heads": heads, "layers": layers}
    refuse_unsuitable(model)
    is_asked = hidden is not None or filters is not None
    if is_asked or (_has_zero_channel(model) and not probe(model).named("ffn")):
        # One after the other: where a feed-forward width is a multiple of the hidden one, both cut the same entries.
        return _shrunk(_shrunk(model, widths, multiple, verify), amounts, multiple, verify)
    return _shrunk(model, {**widths, **amounts}, multiple, verify)


def _shrunk(model: Any, amounts: Mapping[str, Amount], multiple: int, verify: bool) -> Any:
    plan = _make_plan(model, amounts, multiple)
    shrunk = cut(model, plan)
    if verify:
        check_cut(shrunk, model, plan)
    return shrunk


def _make_plan(model: Any, amounts: Mapping[str, Amount], multiple: int) -> Plan:
    anatomy = probe(model)
    check_matches_config(model, anatomy)
    plan = _layer_plan(model, anatomy, amounts.get("layers"))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # Feed-forward widths that no plain modules make are found as the widths of the whole model are.
    is_plain = bool(anatomy.named("ffn"))
    wide = {name: amount for name, amount in amounts.items() if name in (*_WIDTHS, *(() if is_plain else ("ffn",)))}
    for name, found in _width_axes(model, wide).items():
        _add(plan, choose_channels(name, found, wide[name], parameters, multiple))
    for name in ("ffn", "heads"):
        if name in amounts and name not in wide:
            axes = _head_axes(model, amounts[name], parameters) if name == "heads" else anatomy.named(name)
            removed = {g.name for axis in axes for g in axis.groups if plan.new_name(f"{g.name}.") is None}
            step = multiple if name == "ffn" else 1
            _add(plan, choose_units(name, axes, amounts[name], parameters, removed, step))
    return plan


def _add(plan: Plan, chosen: Mapping[Axis, list[torch.Tensor]]) -> None:
    for axis, units in chosen.items():
        if any(len(kept) < group.count for group, kept in zip(axis.groups, units, strict=True)):
            size = len(units[0]) * axis.size // axis.groups[0].count
            plan.fields.update(axis.values(size))
            plan.units.update(zip(axis.groups, units, strict=True))


def _width_axes(model: nn.Module, amounts: Mapping[str, Amount]) -> dict[str, list[Axis]]:
    """Return the axes of the widths; they cost a small model to find, so only if any is asked for or may be zero."""
    if all(amount is None for amount in amounts.values()) and not _has_zero_channel(model):
        return {}
    found, reasons = find_width_axes(model)
    axes = {name: [axis for axis in found if axis.name == name] for name in amounts}
    if isinstance(amounts.get("hidden"), Mapping):
        axes["hidden"] += [axis for axis in found if axis.name == "head_size"]
    for name, amount in amounts.items():
        if amount is not None and not axes[name]:
            why = "; ".join(f"{field}: {reason}" for field, reason in reasons.items()) or "no config field says one"
            raise ArchitectureError(
                f"{name}: expected channels of {type(model).__name__} that can be removed, found none: {why}"
            )
    return axes


def _has_zero_channel(model: Any) -> bool:
    """Whether some weight is zero all along one of its dimensions, as those of masked channels are."""
    weights = [p.detach() != 0 for p in model.parameters() if p.dim() > 1]
    return not all(bool(w.movedim(d, 0).flatten(1).any(1).all()) for w in weights for d in range(w.dim()))


def _layer_plan(model: nn.Module, anatomy: Anatomy, layers: Amount) -> Plan:
    plan = Plan()
    chosen = alive_layers(anatomy, model) if layers is None else choose_layers(anatomy, layers)
    for axis, kept in chosen.items():
        if len(kept) == axis.size:
            continue
        alone = Plan(layers=dict.fromkeys(axis.stacks, kept))
        expected = expected_shapes(anatomy, alone)
        plan.layers.update(alone.layers)
        plan.layer_fields[axis.field] = len(kept)
        plan.layer_fields.update(_sliced_lists(type(model), model.config, axis, kept, expected))
        plan.layer_fields.update(_stage_fields(model.config, axis, kept))
    plan.fields.update(plan.layer_fields)
    return plan


def _head_axes(model: nn.Module, heads: Amount, parameters: Mapping[str, torch.Tensor]) -> tuple[Axis, ...]:
    """Return the axes of heads; they cost a small model to find, so only if some are asked for or may be zero."""
    if heads is None:
        matrices = [p for p in parameters.values() if p.dim() == 2]
        if not any(bool((p == 0).all(dim).any()) for p in matrices for dim in (0, 1)):
            return ()
        found = find_head_axes(model)
        return () if isinstance(found, str) else found
    return head_axes(model)


def removable_layers(model: Any) -> dict[Axis, list[bool]]:
    """Return for each stack which layers can go alone; the last one stays, and no stack loses its only one."""
    anatomy, found = probe(model), {}
    for axis in anatomy.named("layers"):
        found[axis] = [i < axis.size - 1 and _is_removable(model, anatomy, axis, i) for i in range(axis.size)]
    return found


def _is_removable(model: Any, anatomy: Anatomy, axis: Axis, layer: int) -> bool:
    plan = _layer_plan(model, anatomy, {axis.field: [i for i in range(axis.size) if i != layer]})
    shapes = probing.try_shapes(type(model), probing.with_fields(model.config, plan.fields))
    return shapes == expected_shapes(anatomy, plan)


def _stage_fields(config: Any, axis: Axis, kept: list[int]) -> dict[str, Any]:
    """Return what a config that can serve as a backbone says of its layers: it names one stage for each."""
    names, used = getattr(config, "stage_names", None), getattr(config, "out_features", None)
    if not names or len(names) != axis.size + 1 or used != [names[-1]]:
        return {}
    names = list(names[: len(kept) + 1])
    return {"stage_names": names, "out_features": [names[-1]], "out_indices": [len(kept)]}


def _sliced_lists(model_class: type, config: Any, axis: Axis, kept: list[int], expected: probing.Shapes) -> dict:
    """Return the lists of the config that have an element for each layer, with the kept elements."""
    sliced = {
        path: type(value)([value[i] for i in kept])
        for path, value in probing.list_fields(config, axis.field, axis.size).items()
    }
    # A list may have that length by chance (two suppressed tokens, two layers), so the ones that the config itself
    # derives from the depth come first, and the shapes decide about the others.
    derived = {path for path in sliced if probing.follows(config, path, axis.field, len(kept))}
    options = [derived, set(sliced), *({path} for path in sliced), set()]
    for chosen in options:
        values = {axis.field: len(kept), **{path: sliced[path] for path in chosen}}
        if probing.try_shapes(model_class, probing.with_fields(config, values)) == expected:
            break
    else:
        chosen = derived
    return {path: sliced[path] for path in chosen}
