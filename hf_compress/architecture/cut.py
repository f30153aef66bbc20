"""Cuts units and layers out of a model: what stays is planned elsewhere, and here it is built and compared.

Level: state. Legality is settled before anything is built; the input is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, probe
from hf_compress.architecture.units import AxisSlice, UnitGroup, balanced, expand_units, kept_index
from hf_compress.architecture.verify import check_equal, masked_reference
from hf_compress.errors import ArchitectureError


@dataclass(frozen=True)
class Plan:
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


def cut_units(model: Any, units: Mapping[UnitGroup, torch.Tensor], fields: Mapping[str, Any]) -> Any:
    """Return a smaller model with the given units, not compared with the full one.

    Args:
        model: a plain transformers model; it is left as it is.
        units: group -> the units that stay, ascending.
        fields: config path -> new value, which say so.

    Raises:
        ArchitectureError: if the config cannot say that shape.
    """
    return cut(model, Plan(fields=dict(fields), units=dict(units)))


def cut(model: Any, plan: Plan, is_saved: bool = True) -> Any:
    """Return the smaller model that `plan` describes, in the mode of `model`, not compared with it.

    Args:
        model: a plain transformers model; it is left as it is.
        plan: what stays.
        is_saved: whether its config must still say so once it was saved and read again.

    Raises:
        ArchitectureError: if the model is unsuitable or its config cannot say that shape.
    """
    refuse_unsuitable(model)
    anatomy = probe(model)
    check_matches_config(model, anatomy)
    config = probing.with_fields(model.config, plan.fields)
    _check_shapes(type(model), config, plan, expected_shapes(anatomy, plan), is_saved)
    return _build_copy(model, config, plan).train(model.training)


def refuse_unsuitable(model: Any) -> None:
    """Refuse what is no plain transformers model with its weights in memory.

    Raises:
        ArchitectureError: with what to do.
    """
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ArchitectureError(
            f"expected a plain model, found {type(model).__name__} with PEFT adapters; merge them first with "
            "model.merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        raise ArchitectureError(
            f"expected a transformers PreTrainedModel, found {type(model).__name__}; pass the model inside it (for "
            "DataParallel .module, for torch.compile ._orig_mod), and make a plain module a PreTrainedModel whose "
            "config has its sizes"
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


def check_matches_config(model: nn.Module, anatomy: Anatomy) -> None:
    """Refuse a model whose parameters are not those that its config describes.

    Raises:
        ArchitectureError: with the first that differs.
    """
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


def expected_shapes(anatomy: Anatomy, plan: Plan) -> probing.Shapes:
    """Return the shapes of the parameters once what `plan` removes is gone."""
    expected = {}
    # Heads and entries of heads may both go: what is counted is what no cut removes.
    sizes = {
        (name, dim): len(kept_index(cuts, anatomy.shapes[name][dim]))
        for name, dims in _pieces(plan).items()
        for dim, cuts in dims.items()
    }
    for name, shape in anatomy.shapes.items():
        new_name = plan.new_name(name)
        if new_name is not None:
            expected[new_name] = tuple(sizes.get((name, dim), entries) for dim, entries in enumerate(shape))
    return expected


def _check_shapes(model_class: type, config: Any, plan: Plan, expected: probing.Shapes, is_saved: bool) -> None:
    """Hold what the new config builds, and what it builds once it was saved, against what the tensors will be."""
    for is_reloaded in (False, True) if is_saved else (False,):
        found = probing.try_shapes(model_class, config, is_reloaded)
        if isinstance(found, str):
            raise ArchitectureError(
                f"expected {model_class.__name__} to accept {plan.fields}, found that it refuses: {found}; keep "
                "another number of units or layers"
            )
        differing = sorted({n for n in {*found, *expected} if found.get(n) != expected.get(n)})
        if differing and not plan.layers:
            raise ArchitectureError(
                f"expected the config of {model_class.__name__} to say the shapes that are left with {plan.fields}, "
                f"found that it gives {differing[0]} another one; keep another number of units"
            )
        if differing:
            raise ArchitectureError(
                f"expected the kept layers {list(plan.layers.values())} to fit the places that the config of "
                f"{model_class.__name__} gives them, found {differing[0]} to be different there; layers are not "
                "interchangeable in this model: keep the first one, and for mixed kinds keep their pattern"
            )


def _build_copy(model: Any, config: Any, plan: Plan) -> Any:
    """Return the smaller model, filled from the full one by name."""
    device = next(model.parameters()).device
    shrunk = probing.build(type(model), config, device)
    sources = dict(model.named_parameters(remove_duplicate=False))
    pieces = _pieces(plan)
    balance = {
        piece.parameter: (group, piece, len(units)) for group, units in plan.units.items() for piece in group.balance
    }
    for name, parameter in shrunk.named_parameters():
        old = plan.old_name(name)
        kept = sources[old].detach()
        if old in balance:
            kept = balanced(kept, *balance[old])
        for dim, cuts in pieces.get(old, {}).items():
            kept = kept.index_select(dim, kept_index(cuts, kept.shape[dim]).to(kept.device))
        parameter.data = kept.clone(memory_format=torch.contiguous_format)
        parameter.requires_grad_(sources[old].requires_grad)
    _copy_buffers(model, shrunk, plan)
    if getattr(model, "generation_config", None) is not None:
        shrunk.generation_config = copy.deepcopy(model.generation_config)
    return shrunk


def _copy_buffers(model: nn.Module, shrunk: nn.Module, plan: Plan) -> None:
    sources = dict(model.named_buffers(remove_duplicate=False))
    saved = shrunk.state_dict().keys()
    pieces = _pieces(plan)
    for name, buffer in shrunk.named_buffers():
        source = sources.get(plan.old_name(name))
        if source is None:
            continue
        if name not in saved:
            # A reloaded model computes it anew, from its own config; a cast one has it in its own precision.
            buffer.data = buffer.detach().to(source.dtype)
            continue
        if source.shape != buffer.shape and source.dim() == 1:
            # Running statistics go with the weight beside them.
            beside = f"{plan.old_name(name).rpartition('.')[0]}.weight"
            for cuts in pieces.get(beside, {}).values():
                index = kept_index(cuts, len(source))
                source = source[index.to(source.device)] if len(index) == len(buffer) else source
        else:
            source = _cut_buffer(source, buffer.shape, plan)
        if source.shape != buffer.shape:
            raise ArchitectureError(
                f"expected the smaller {type(model).__name__} to keep {name} whole, found another shape there, "
                f"{tuple(buffer.shape)}, and nothing says which entries stay; keep another number of units"
            )
        buffer.data = source.detach().clone()


def _cut_buffer(buffer: torch.Tensor, shape: Sequence[int], plan: Plan) -> torch.Tensor:
    """Return the entries of the units that stay where only one dimension and one kind of unit can be meant."""
    differing = [d for d, (old, new) in enumerate(zip(buffer.shape, shape, strict=False)) if old != new]
    sizes = [(buffer.shape[d], shape[d]) for d in differing]
    fitting = [units for group, units in plan.units.items() if sizes == [(group.count, len(units))]]
    return buffer.index_select(differing[0], fitting[0].to(buffer.device)) if len(fitting) == 1 else buffer


_Cuts = dict[int, list[tuple[AxisSlice, torch.Tensor, int]]]


def _pieces(plan: Plan) -> dict[str, _Cuts]:
    """Return by parameter and dimension where units lie, which stay, and how many there are."""
    found: dict[str, _Cuts] = {}
    for group, units in plan.units.items():
        for piece in group.slices:
            found.setdefault(piece.parameter, {}).setdefault(piece.dim, []).append((piece, units, group.count))
    return found


def reference_of(model: Any, plan: Plan) -> Any:
    """Return a copy of `model` in which all that `plan` removes is zero, and norms see only what stays."""
    lists = {prefix.removesuffix("."): kept for prefix, kept in plan.layers.items()}
    return masked_reference(model, unit_masks(model, plan.units), lists, plan.layer_fields, _narrowed(model, plan))


def _narrowed(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """Return the modules that compute statistics over channels that go, with the entries that stay."""
    pieces = _pieces(plan)
    return {
        path: kept_index(pieces[name][0], len(model.get_parameter(name)))
        for path, name in channel_norms(model, pieces).items()
    }


def channel_norms(model: nn.Module, parameters: Iterable[str]) -> dict[str, str]:
    """Return those modules among the owners of `parameters` that look at all channels together, with a parameter."""
    found = {}
    for name in parameters:
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        is_norm = all(p.dim() == 1 for p in module.parameters()) and next(module.children(), None) is None
        # These look at each channel alone, or at groups of them as they are.
        if is_norm and path and not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            found[path] = name
    return found


def check_cut(shrunk: Any, model: Any, plan: Plan) -> None:
    """Compare the outputs of the smaller model with those of the full one in which the rest is zero.

    Raises:
        ArchitectureError: if they differ by more than rounding, or no input could be made up.
    """
    kept: dict[tuple[int, int], list[torch.Tensor]] = {}
    for group, units in plan.units.items():
        kept.setdefault((group.count, len(units)), []).append(units)
    check_equal(shrunk, reference_of(model, plan), kept)


def unit_masks(model: nn.Module, units: Mapping[UnitGroup, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a bool mask of each coupled parameter, False where a unit that goes has an entry."""
    parameters = dict(model.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for group, kept in units.items():
        keep = torch.zeros(group.count, dtype=torch.bool)
        keep[kept] = True
        for name, mask in expand_units(group, keep, parameters).items():
            masks[name] = masks[name] & mask if name in masks else mask
    return masks
