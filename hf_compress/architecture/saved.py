"""Weights in a saved folder under the names that the model in memory gives them.

Level: state. transformers 5 saves some architectures (ViT for one) under their old names and translates when
`from_pretrained` reads them; who reads the file alone, such as the Trainer on resume, finds none of those names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def saved_names(folder: str | Path) -> set[str]:
    """Return the names of all tensors in the weight files of `folder`."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def is_renamed(model: nn.Module, folder: str | Path) -> bool:
    """Say whether the files of `folder` have names that `model` does not know."""
    return hasattr(type(model), "from_pretrained") and not saved_names(folder) <= model.state_dict().keys()


def saved_weights(model: nn.Module, folder: str | Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Return tensors as saved in `folder`, by the names of `model`; names that are not there are left out."""
    from safetensors import safe_open

    if is_renamed(model, folder):
        state = _read_back(model, folder).state_dict()
        return {name: state[name] for name in names & state.keys()}
    found = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in names & set(file.keys())})
    return found


def restore_renamed_(model: nn.Module, folder: str | Path) -> bool:
    """Load the weights of `folder` into `model`, in place, if they are saved under other names.

    Returns:
        Whether there was anything to do.
    """
    if not is_renamed(model, folder):
        return False
    model.load_state_dict(_read_back(model, folder).state_dict())
    return True


def _read_back(model: nn.Module, folder: str | Path) -> nn.Module:
    # Reading a model back must not move the random numbers of a run.
    with torch.random.fork_rng(devices=[]):
        return type(model).from_pretrained(folder)
