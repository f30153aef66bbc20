"""`shrink`: removes feed-forward units and layers, so that a smaller plain model with the same class remains.

Level: state. Legality is settled before anything is built; the input is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, Axis, probe
from hf_compress.architecture.attention import find_head_axes, head_axes
from hf_compress.architecture.kept import Amount, choose_layers, choose_units
from hf_compress.architecture.units import AxisSlice, UnitGroup, expand_units, unit_index
from hf_compress.architecture.verify import check_equal, masked_reference
from hf_compress.errors import ArchitectureError


@dataclass(frozen=True)
class _Plan:
    """What stays.

    Args:
        fields: config path -> new value.
        layer_fields: the part of `fields` that speaks of layers.
        units: group of units -> the kept ones, ascending.
        layers: stack prefix -> kept indices, ascending.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    layer_fields: dict[str, Any] = field(default_factory=dict)
    units: dict[UnitGroup, torch.Tensor] = field(default_factory=dict)
    layers: dict[str, list[int]] = field(default_factory=dict)

    def old_name(self, name: str) -> str:
        """Return what a parameter of the smaller model was called in the full one."""
        for prefix, kept in self.layers.items():
            if name.startswith(prefix):
                index, _, rest = name.removeprefix(prefix).partition(".")
                return f"{prefix}{kept[int(index)]}.{rest}"
        return name

    def new_name(self, name: str) -> str | None:
        """Return what a parameter of the full model is called in the smaller one; None if its layer goes."""
        for prefix, kept in self.layers.items():
            if name.startswith(prefix):
                index, _, rest = name.removeprefix(prefix).partition(".")
                return f"{prefix}{kept.index(int(index))}.{rest}" if int(index) in kept else None
        return name


def shrink(model: Any, *, ffn: Amount = None, heads: Amount = None, layers: Amount = None, verify: bool = True) -> Any:
    """Return a smaller model of the same class, which stock `from_pretrained` loads once it is saved.

    Args:
        model: a plain transformers model (no adapters, not quantized); it is left as it is.
        ffn: feed-forward units to keep in each layer. None: drop those that are entirely zero, to one common width;
            a whole number, 1 to the width of now, or a fraction, above 0 and below 1: keep the strongest by L2 norm;
            a list: the kept units of each layer, all of one length. For models with several feed-forward fields also
            a dict from config field to any of these.
        heads: key-value heads to keep in each layer, with the query heads that read them, as `ffn`; for models whose
            config can say their number apart from the width.
        layers: layers to keep. None: all; a whole number: evenly spaced, first and last included (one: the last);
            a list: their indices. For models with several stacks a dict from config field to either.
        verify: compare outputs with the masked full model on a made-up input.

    Returns:
        A new model with the dtype, device and mode of `model`; without anything to remove an equal copy.

    Raises:
        ArchitectureError: if the config cannot say that shape (before anything is built), or outputs differ.

    Source: Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models", drop from the top
        before fine-tuning (give a list for that); once a model is fine-tuned its last layer has to stay.
    """
    _refuse_unsuitable(model)
    anatomy = probe(model)
    _check_matches_config(model, anatomy)
    plan = _make_plan(model, anatomy, ffn, heads, layers)
    config = probing.with_fields(model.config, plan.fields)
    _check_shapes(type(model), config, plan, _expected_shapes(anatomy, plan))
    shrunk = _build_copy(model, config, plan, anatomy)
    if verify:
        lists = {prefix.removesuffix("."): kept for prefix, kept in plan.layers.items()}
        check_equal(shrunk, masked_reference(model, _masks(model, plan), lists, plan.layer_fields))
    return shrunk.train(model.training)


def cut_units(model: Any, units: Mapping[UnitGroup, torch.Tensor], fields: Mapping[str, Any]) -> Any:
    """Return a smaller model with the given units, not compared with the full one.

    Args:
        model: a plain transformers model; it is left as it is.
        units: group -> the units that stay, ascending.
        fields: config path -> new value, which say so.

    Raises:
        ArchitectureError: if the config cannot say that shape.
    """
    _refuse_unsuitable(model)
    anatomy = probe(model)
    _check_matches_config(model, anatomy)
    plan = _Plan(fields=dict(fields), units=dict(units))
    config = probing.with_fields(model.config, plan.fields)
    _check_shapes(type(model), config, plan, _expected_shapes(anatomy, plan))
    return _build_copy(model, config, plan, anatomy).train(model.training)


def _refuse_unsuitable(model: Any) -> None:
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ArchitectureError(
            f"expected a plain model, found {type(model).__name__} with PEFT adapters; merge them first with "
            "model.merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        raise ArchitectureError(
            f"expected a transformers PreTrainedModel, found {type(model).__name__}; pass the model inside it (for "
            "DataParallel .module, for torch.compile ._orig_mod)"
        )
    is_foreign = any(type(m).__module__.startswith("bitsandbytes") for m in model.modules())
    if is_foreign or getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None):
        raise ArchitectureError(
            f"expected 16- or 32-bit weights, found a quantized {type(model).__name__}; shrink first, quantize last"
        )
    if any(p.is_meta for p in model.parameters()):
        raise ArchitectureError(
            f"expected {type(model).__name__} with its weights in memory, found weights on the meta device (not "
            "loaded or offloaded); load it without device_map"
        )


def _check_matches_config(model: nn.Module, anatomy: Anatomy) -> None:
    found = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    differing = sorted(
        {n for n in anatomy.shapes if found.get(n) != anatomy.shapes[n]}
        | {n for n, _ in model.named_parameters() if n not in anatomy.shapes}
    )
    if differing:
        raise ArchitectureError(
            f"expected the parameters that the config of {type(model).__name__} describes, found {len(differing)} "
            f"others, such as {differing[0]}; such a model does not load with stock from_pretrained: undo the change"
        )


def _make_plan(model: nn.Module, anatomy: Anatomy, ffn: Amount, heads: Amount, layers: Amount) -> _Plan:
    plan = _Plan()
    for axis, kept in choose_layers(anatomy, layers).items():
        if len(kept) == axis.size:
            continue
        alone = _Plan(layers=dict.fromkeys(axis.stacks, kept))
        expected = _expected_shapes(anatomy, alone)
        plan.layers.update(alone.layers)
        plan.layer_fields[axis.field] = len(kept)
        plan.layer_fields.update(_sliced_lists(type(model), model.config, axis, kept, expected))
    plan.fields.update(plan.layer_fields)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for option, axes, amount in (
        ("ffn", anatomy.named("ffn"), ffn),
        ("heads", _head_axes(model, heads, parameters), heads),
    ):
        removed = {g.name for axis in axes for g in axis.groups if plan.new_name(f"{g.name}.") is None}
        for axis, units in choose_units(option, axes, amount, parameters, removed).items():
            if len(units[0]) < axis.size:
                plan.fields.update(axis.values(len(units[0])))
                plan.units.update(zip(axis.groups, units, strict=True))
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


def _expected_shapes(anatomy: Anatomy, plan: _Plan) -> probing.Shapes:
    expected = {}
    sizes: dict[tuple[str, int], int] = {}
    for group, units in plan.units.items():
        for piece in group.slices:
            key = (piece.parameter, piece.dim)
            entries = sizes.get(key, anatomy.shapes[piece.parameter][piece.dim])
            sizes[key] = entries - piece.per_unit * (group.count - len(units))
    for name, shape in anatomy.shapes.items():
        new_name = plan.new_name(name)
        if new_name is not None:
            expected[new_name] = tuple(sizes.get((name, dim), entries) for dim, entries in enumerate(shape))
    return expected


def _check_shapes(model_class: type, config: Any, plan: _Plan, expected: probing.Shapes) -> None:
    """Hold what the new config builds, and what it builds once it was saved, against what the tensors will be."""
    for is_reloaded in (False, True):
        found = probing.try_shapes(model_class, config, is_reloaded)
        if isinstance(found, str):
            raise ArchitectureError(
                f"expected {model_class.__name__} to accept {plan.fields}, found that it refuses: {found}; keep "
                "another number of units or layers"
            )
        differing = sorted({n for n in {*found, *expected} if found.get(n) != expected.get(n)})
        if differing:
            raise ArchitectureError(
                f"expected the kept layers {list(plan.layers.values())} to fit the places that the config of "
                f"{model_class.__name__} gives them, found {differing[0]} to be different there; layers are not "
                "interchangeable in this model: keep the first one, and for mixed kinds keep their pattern"
            )


def _build_copy(model: Any, config: Any, plan: _Plan, anatomy: Anatomy) -> Any:
    """Return the smaller model, filled from the full one by name."""
    device = next(model.parameters()).device
    shrunk = probing.build(type(model), config, device)
    sources = dict(model.named_parameters(remove_duplicate=False))
    pieces = _pieces(plan)
    for name, parameter in shrunk.named_parameters():
        old = plan.old_name(name)
        kept = sources[old].detach()
        for piece, units, count in pieces.get(old, ()):
            index = unit_index(piece, units, count, kept.shape[piece.dim])
            kept = kept.index_select(piece.dim, index.to(kept.device))
        parameter.data = kept.clone(memory_format=torch.contiguous_format)
        parameter.requires_grad_(sources[old].requires_grad)
    _copy_buffers(model, shrunk, plan)
    if getattr(model, "generation_config", None) is not None:
        shrunk.generation_config = copy.deepcopy(model.generation_config)
    return shrunk


def _copy_buffers(model: nn.Module, shrunk: nn.Module, plan: _Plan) -> None:
    # Those that are not saved too (rotary frequencies): a cast model has them in its own precision.
    sources = dict(model.named_buffers(remove_duplicate=False))
    for name, buffer in shrunk.named_buffers():
        source = sources.get(plan.old_name(name))
        if source is not None and source.shape == buffer.shape:
            buffer.data = source.detach().clone()


def _pieces(plan: _Plan) -> dict[str, list[tuple[AxisSlice, torch.Tensor, int]]]:
    found: dict[str, list[tuple[AxisSlice, torch.Tensor, int]]] = {}
    for group, units in plan.units.items():
        for piece in group.slices:
            found.setdefault(piece.parameter, []).append((piece, units, group.count))
    # From behind, so that what goes moves nothing that is still to be cut.
    return {name: sorted(cuts, key=lambda cut: cut[0].start, reverse=True) for name, cuts in found.items()}


def _masks(model: nn.Module, plan: _Plan) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for group, units in plan.units.items():
        keep = torch.zeros(group.count, dtype=torch.bool)
        keep[units] = True
        for name, mask in expand_units(group, keep, parameters).items():
            masks[name] = masks[name] & mask if name in masks else mask
    return masks
