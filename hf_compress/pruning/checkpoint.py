"""The pruning state beside the weights of a checkpoint: one safetensors file, written whole or not at all.

Level: state. Masks are kept as bits, straight-through values of masked entries alone, running scores in full.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from hf_compress.errors import CheckpointError
from hf_compress.pruning.pruner import Pruner
from hf_compress.pruning.shards import gather, scatter
from hf_compress.pruning.stores import Shadows, Zeros

STATE_FILE = "pruning_state.safetensors"


def save_pruning_state(pruner: Pruner, folder: str | Path, *, write: bool = True) -> None:
    """Write the state of `pruner` into the checkpoint `folder`.

    Args:
        pruner: whose state; where parameters are sharded, all processes must call this.
        folder: the checkpoint.
        write: whether this process writes; the others only send their parts.
    """
    from safetensors.torch import save_file

    tensors = state_dict(pruner)
    if not write:
        return
    part = Path(folder) / (STATE_FILE + ".part")
    # The marker keeps the file valid while there are no masks yet.
    save_file({**tensors, "__format__": torch.tensor([2], dtype=torch.uint8)}, part, metadata=_metadata(pruner))
    os.replace(part, Path(folder) / STATE_FILE)


def load_pruning_state(pruner: Pruner, folder: str | Path) -> None:
    """Read the state of the checkpoint `folder` into `pruner` and make sure that its masks fit the weights.

    Raises:
        CheckpointError: if the file is missing, broken, or was made with other options.
        SparsityError: if masked weights are not zero.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{Path(folder).name} has no {STATE_FILE}: it was not written by a pruning run, or its save was cut off; "
            "resume from another checkpoint or train anew"
        )
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys() if name != "__format__"}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} in {Path(folder).name} cannot be read: {error}") from error
    load_state_dict(pruner, state, metadata)
    # Frozen weights under an adapter are in no checkpoint; they come as they were before pruning.
    pruner.zero_frozen_()
    pruner.check()


def state_dict(pruner: Pruner) -> dict[str, torch.Tensor]:
    """Return masks ("mask.NAME", 8 a byte), masked values ("shadow.NAME") and running scores ("KIND.NAME")."""
    state: dict[str, torch.Tensor] = {}
    for name, mask in pruner.masks.items():
        state[f"mask.{name}"] = _pack(mask)
        if isinstance(pruner.store, Shadows):
            values = gather(pruner.store.values[name], pruner.parameters[name]).cpu()
            state[f"shadow.{name}"] = values[~mask.cpu()].clone()
    for name, kinds in pruner.running.items():
        for kind, tensor in kinds.items():
            state[f"{kind}.{name}"] = gather(tensor, pruner.parameters[name]).cpu().contiguous()
    return state


def load_state_dict(pruner: Pruner, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Take over what `state_dict` gave, after `attach`.

    Raises:
        CheckpointError: if it was made with another config or for another model.
    """
    if metadata.get("pruning") != _metadata(pruner)["pruning"]:
        raise CheckpointError(
            f"the checkpoint was written with pruning {metadata.get('pruning')}, this run has "
            f"{_metadata(pruner)['pruning']}; resume with the same options or train anew"
        )
    masks = {n.removeprefix("mask."): t for n, t in state.items() if n.startswith("mask.")}
    sizes = {n: p.numel() for n, p in pruner.parameters.items()}
    if masks and {n: -(-s // 8) for n, s in sizes.items()} != {n: t.numel() for n, t in masks.items()}:
        raise CheckpointError(
            f"the checkpoint holds masks of {len(masks)} parameters that do not fit this model's {len(sizes)}; "
            "resume with the model that was being pruned"
        )
    _refuse_unfit(pruner, state, masks, sizes)
    for name, parameter in pruner.parameters.items():
        kinds = {kind: state.get(f"{kind}.{name}") for kind in pruner.plan.criterion.running}
        if all(t is not None for t in kinds.values()) and kinds:
            pruner.running[name] = {k: scatter(t, parameter).to(parameter.device) for k, t in kinds.items()}
    if masks:
        whole = {n: _unpack(bits, sizes[n]).view(pruner.parameters[n].shape) for n, bits in masks.items()}
        _take_over(pruner, whole, state)


def _refuse_unfit(
    pruner: Pruner, state: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> None:
    """Make sure that every tensor of `state` has its place, so that nothing is taken over by halves.

    Raises:
        CheckpointError: naming one that has not.
    """
    numbers: dict[str, int] = {}
    for name, bits in masks.items():
        if bits.dtype != torch.uint8 or bits.dim() != 1:
            raise CheckpointError(f"the mask of {name} must be bytes in a row, found {bits.dtype} {tuple(bits.shape)}")
        if isinstance(pruner.store, Shadows):
            numbers[f"shadow.{name}"] = sizes[name] - int(_unpack(bits, sizes[name]).sum())
    numbers |= {f"{k}.{n}": sizes[n] for n in sizes for k in pruner.plan.criterion.running if f"{k}.{n}" in state}
    for name, size in numbers.items():
        found = state.get(name)
        kind, _, parameter = name.partition(".")
        fits = found is not None and found.is_floating_point() and found.numel() == size
        if found is None or not fits or (kind == "shadow" and found.dtype != pruner.parameters[parameter].dtype):
            what = "none" if found is None else f"{found.numel()} of {found.dtype}"
            raise CheckpointError(f"the checkpoint must hold {size} numbers of {name}, found {what}; train anew")


def _take_over(pruner: Pruner, whole: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    for name, mask in whole.items():
        parameter = pruner.parameters[name]
        if isinstance(pruner.store, Shadows):
            values = torch.full(mask.shape, torch.nan, dtype=parameter.dtype)
            values[~mask] = state[f"shadow.{name}"]
            pruner.store.restore(name, scatter(values, parameter).to(parameter.device))
        elif isinstance(pruner.store, Zeros):
            pruner.store.restore(name, scatter(mask, parameter).to(parameter.device))
    pruner.recount()


def _metadata(pruner: Pruner) -> dict[str, str]:
    """Return what must be equal for a state to be loaded: the config."""
    return {"pruning": json.dumps(pruner.config.to_dict(), sort_keys=True)}


def _pack(keep: torch.Tensor) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(keep.cpu().numpy()))


def _unpack(bits: torch.Tensor, size: int) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size).astype(bool))
