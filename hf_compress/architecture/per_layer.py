"""Another number of heads and neurons in each layer, which no config can say: built, and saved with its own code.

Level: state. The folder that is saved has one small modelling file beside the weights, so whoever loads it says
`trust_remote_code=True` knowingly and needs no hf_compress.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import probe
from hf_compress.architecture.attention import find_head_axes
from hf_compress.architecture.cut import refuse_unsuitable, unit_masks
from hf_compress.architecture.units import AxisSlice, UnitGroup, kept_index
from hf_compress.architecture.verify import check_equal, masked_reference
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError

FIELD = "per_layer_shapes"
_FILE = "modeling_per_layer.py"
_CODE = '''"""{parent} with another size in each layer: `config.{field}` has the linear layers that differ."""

from torch import nn
from transformers import {parent}
from transformers.pytorch_utils import Conv1D


class {name}({parent}):
    """The stock model, in which some linear layers have other sizes."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, (inputs, outputs) in config.{field}.items():
            parent, _, leaf = path.rpartition(".")
            old = self.get_submodule(path)
            if isinstance(old, Conv1D):
                new = Conv1D(outputs, inputs)
            else:
                new = nn.Linear(inputs, outputs, bias=old.bias is not None)
            setattr(self.get_submodule(parent), leaf, new.to(old.weight.dtype))
'''


def per_layer_groups(model: Any, kind: str) -> list[UnitGroup]:
    """Return the units of each layer that can go without the same number going elsewhere.

    Args:
        model: a transformers model.
        kind: "ffn" or "heads"; heads also where their size follows from the hidden width.

    Raises:
        ArchitectureError: if there are none.
    """
    if kind == "ffn":
        found = [group for axis in probe(model).named("ffn") for group in axis.groups]
    else:
        axes = find_head_axes(model)
        if not isinstance(axes, str):
            found = [group for axis in axes for group in axis.groups]
        else:
            # Where heads go with the width, each layer's heads are units of their own.
            wide = [axis for axis in find_width_axes(model)[0] if axis.name == "hidden"]
            found = [g for axis in wide for g in axis.groups if g.count < axis.size and _is_in_one_layer(g)]
    if not found or any(group.tie for group in found):
        raise ArchitectureError(
            f"expected {kind} of {type(model).__name__} that can go in each layer alone, found "
            f"{'ones that are tied over layers' if found else 'none'}"
        )
    return found


def _is_in_one_layer(group: UnitGroup) -> bool:
    layers = {piece.layer for piece in group.slices}
    return len(layers) == 1 and None not in layers


def cut_per_layer(model: Any, kept: Mapping[UnitGroup, torch.Tensor], verify: bool = True) -> Any:
    """Return a copy of `model` without some units, another number in each layer.

    Args:
        model: a plain transformers model; it is left as it is.
        kept: units of `per_layer_groups` -> those that stay, ascending, at least one each.
        verify: compare outputs with the masked model on a made-up input.

    Returns:
        A model of the same class whose config has the sizes in `per_layer_shapes`; save it with `save_per_layer`.

    Raises:
        ArchitectureError: if a group would be empty, units are not read by plain linear layers, or outputs differ.
    """
    refuse_unsuitable(model)
    smaller = copy.deepcopy(model)
    shapes: dict[str, list[int]] = dict(getattr(model.config, FIELD, None) or {})
    cuts: dict[tuple[str, int], list[tuple[AxisSlice, torch.Tensor, int]]] = {}
    for group, units in kept.items():
        if len(units) == 0:
            raise ArchitectureError(f"{group.name}: expected at least one unit to stay, found none")
        for piece in group.slices:
            cuts.setdefault((piece.parameter, piece.dim), []).append((piece, units, group.count))
    for (name, dim), pieces in cuts.items():
        path, _, leaf = name.rpartition(".")
        if len({piece.start for piece, _, _ in pieces}) > 1:
            # Queries, keys and values of different sizes in one matrix: attention with wrong ones can end the process.
            raise ArchitectureError(
                f"expected the layers of {type(model).__name__} to take the number of their units from their weights, "
                f"found that {path} is split by numbers of the config; use the uniform layout"
            )
        module = smaller.get_submodule(path)
        parameter = getattr(module, leaf)
        index = kept_index(pieces, parameter.shape[dim]).to(parameter.device)
        setattr(module, leaf, nn.Parameter(parameter.detach().index_select(dim, index), parameter.requires_grad))
        if leaf == "weight":
            shapes[path] = _resize(module, path)
    setattr(smaller.config, FIELD, shapes)
    if verify:
        try:
            check_equal(smaller, masked_reference(model, unit_masks(model, kept), {}, {}, {}), {})
        except probing.build_errors() as error:
            if isinstance(error, ArchitectureError):
                raise
            raise ArchitectureError(
                f"expected the layers of {type(model).__name__} to take the number of their units from their weights, "
                f"found that they do not ({error}); use the uniform layout"
            ) from error
    return smaller


def _resize(module: nn.Module, path: str) -> list[int]:
    """Tell a linear layer its size; returns [inputs, outputs]."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
        return [module.nx, module.nf]
    if not isinstance(module, nn.Linear):
        raise ArchitectureError(f"expected linear layers, found {path} to be a {type(module).__name__}")
    module.out_features, module.in_features = module.weight.shape
    return [module.in_features, module.out_features]


def save_per_layer(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Save a model of `cut_per_layer` with the code that loads it by `from_pretrained(..., trust_remote_code=True)`.

    Args:
        model: as `cut_per_layer` returned it, trained further or not.
        folder: where to.

    Raises:
        ArchitectureError: if the model has one size for all layers, or no Auto class.
    """
    if not getattr(probing.config_of(model), FIELD, None):
        raise ArchitectureError(f"expected a model with {FIELD} in its config, found none; use model.save_pretrained")
    parent, folder = type(model).__name__, Path(folder)
    name = f"PerLayer{parent}"
    auto = _auto_class(parent)
    before = {key: vars(model.config).get(key) for key in ("auto_map", "architectures")}
    try:
        model.config.auto_map = {auto: f"{Path(_FILE).stem}.{name}"}
        model.save_pretrained(folder)
    finally:
        for key, value in before.items():
            if value is None:
                # transformers looks into an auto_map that is there.
                vars(model.config).pop(key, None)
            else:
                setattr(model.config, key, value)
    (folder / _FILE).write_text(_CODE.format(parent=parent, name=name, field=FIELD))
    return folder


def _auto_class(name: str) -> str:
    import transformers

    suffix = name[name.index("For") :] if "For" in name else ""
    suffix = {"ForConditionalGeneration": "ForSeq2SeqLM"}.get(suffix, suffix)
    found = "AutoModelForCausalLM" if name.endswith("LMHeadModel") else f"AutoModel{suffix}"
    if not hasattr(transformers, found):
        raise ArchitectureError(f"expected an Auto class that loads {name}, found none called {found}")
    return found
