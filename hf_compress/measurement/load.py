"""Saved model folders: their config, class and weights, loaded the way any user of transformers would.

Level: state.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from hf_compress.architecture.loading import refusing
from hf_compress.errors import ConfigError, UnsupportedError
from hf_compress.measurement.adapter import ADAPTER_CONFIG, is_adapter, whole_model
from hf_compress.measurement.environment import default_device
from hf_compress.measurement.exported import ExportedModule, is_exported, program_files
from hf_compress.plain import shown


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the `config.json` of a saved model as plain data.

    Raises:
        ConfigError: if the folder or its config is missing or not JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"there is no model folder {folder}; give a folder written by save_pretrained")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / ADAPTER_CONFIG).is_file():
            raise ConfigError(
                f"expected a whole model, found an adapter in {folder}; merge it into its base, with `merge_adapter` "
                "or PEFT's merge_and_unload, and save that"
            ) from error
        raise ConfigError(
            f"{folder} is not a saved model: it has no config.json; a plain module, of which only weights are saved, "
            "is measured and exported in memory, as an object"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder}/config.json must hold a mapping, found {type(config).__name__}")
    return config


def weight_files(folder: str | Path) -> list[Path]:
    """Return the files that hold the weights: safetensors that `from_pretrained` reads, or an exported program.

    Others in the folder, such as masks, are no weights.

    Raises:
        ConfigError: if there are none, one of several is missing, or no such folder.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"there is no model folder {folder}; give a folder written by save_pretrained")
    if is_exported(folder):
        return program_files(folder)
    whole, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    if whole.is_file():
        return _whole([whole])
    if not index.is_file():
        raise ConfigError(
            f"{folder} has no *.safetensors weights under model.* (no other format is read); save it again"
        )
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{index} is no index of weights: {error}; save the model again") from error
    # What a folder from elsewhere names must lie in it.
    if not names or not all(isinstance(n, str) and os.path.basename(n) == n != ".." for n in names):
        raise ConfigError(f"{index} must name files beside it, found {shown(list(names))}; save the model again")
    files = [Path(folder) / name for name in sorted(names)]
    missing = [shown(f.name) for f in files if not os.path.isfile(f)]
    if missing:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}, which its index names; copy the whole folder")
    return _whole(files)


def _whole(files: list[Path]) -> list[Path]:
    """Return `files` if each has all the bytes that its header says."""
    from safetensors import safe_open

    for file in files:
        with refusing(ConfigError, str(file)), safe_open(str(file), framework="pt"):
            pass
    return files


def model_class(folder: str | Path) -> type[Any]:
    """Return the transformers class named in the config's `architectures`.

    Raises:
        ConfigError: if the config names none.
        UnsupportedError: if transformers has no class of that name.
    """
    import transformers

    names = read_config(folder).get("architectures")
    if not names:
        raise ConfigError(f"{folder}/config.json names no architectures, so its class is unknown; save it again")
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ConfigError(f"{folder}/config.json must list names as architectures, found {shown(names)}")
    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UnsupportedError(
            f"{folder}: transformers {transformers.__version__} has no class {names[0]!r}; "
            "load a model with code of its own yourself, and measure the object"
        )
    return found


def load_model(folder: str | Path, device: str | None = None) -> nn.Module:
    """Load a saved model with stock transformers, in eval mode; an exported one becomes an `ExportedModule`.

    Args:
        folder: written by `save_pretrained`; quantized weights are loaded as they are.
        device: "cpu" or "cuda"; None takes the GPU if there is one.

    Raises:
        ConfigError: if the folder is missing, is no saved model, or lacks weights.
        UnsupportedError: if its class is not part of transformers.
    """
    if is_exported(folder):
        return ExportedModule(folder, device).eval()
    cls = model_class(folder)
    weight_files(folder)
    device = device or default_device()
    # bitsandbytes models cannot always be moved after loading, so they are placed while loading.
    placement = {"device_map": {"": device}} if is_quantized(folder) else {}
    with refusing(ConfigError, str(folder)):
        model, info = cls.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **placement
        )
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills these with random numbers and goes on, so every number measured would be wrong.
        raise ConfigError(f"{folder} lacks {len(missing)} weights of {cls.__name__}, for example {missing[0]}")
    model.eval()
    return model if placement else model.to(device)


def load_measured(folder: str | Path, device: str | None = None) -> nn.Module:
    """Load a saved model, an exported one, or an adapter on its base, in eval mode.

    Args:
        folder: of the model or of the adapter.
        device: as in `load_model`.

    Raises:
        ConfigError: if something is missing.
        MissingDependencyError: if `folder` holds an adapter and peft is not installed.
        UnsupportedError: if its class is not part of transformers.
    """
    model = load_model(whole_model(folder), device)
    if not is_adapter(folder):
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).eval()


def is_quantized(folder: str | Path) -> bool:
    """Say whether the config of a saved model declares quantized weights."""
    if is_exported(folder):
        # Whatever its config says is of the model that it was made from; there may be none.
        return False
    return bool(read_config(folder).get("quantization_config"))
