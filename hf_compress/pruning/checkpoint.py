"""The pruning state beside the weights of a checkpoint: one safetensors file, written whole or not at all.

Level: state.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hf_compress.errors import CheckpointError
from hf_compress.pruning.pruner import Pruner

STATE_FILE = "pruning_state.safetensors"


def save_pruning_state(pruner: Pruner, folder: str | Path) -> None:
    """Write the masks of `pruner` into the checkpoint `folder`."""
    from safetensors.torch import save_file

    part = Path(folder) / (STATE_FILE + ".part")
    # The marker keeps the file valid while there are no masks yet.
    tensors = {**pruner.state_dict(), "__format__": torch.ones(1, dtype=torch.uint8)}
    save_file(tensors, part, metadata=pruner.metadata())
    os.replace(part, Path(folder) / STATE_FILE)


def load_pruning_state(pruner: Pruner, folder: str | Path) -> None:
    """Read the masks of the checkpoint `folder` into `pruner` and make sure that they fit the weights.

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
    pruner.load_state_dict(state, metadata)
    pruner.check()
