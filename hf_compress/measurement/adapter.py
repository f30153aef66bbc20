"""Saved PEFT adapters: small weights on top of a model that is saved elsewhere.

Level: base; huggingface_hub is imported inside functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError
from hf_compress.imports import require

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_TOLD = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_dora", "target_modules", "modules_to_save")


def is_adapter(folder: str | Path) -> bool:
    """Say whether a folder holds an adapter, and no model of its own."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def read_adapter(folder: str | Path) -> dict[str, Any]:
    """Return what the adapter's config says, without what it leaves open.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        config = json.loads((Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{folder}/{ADAPTER_CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{folder}/{ADAPTER_CONFIG} must hold a mapping, found {type(config).__name__}")
    return {key: value for key, value in config.items() if value not in (None, False, [], {})}


def describe_adapter(folder: str | Path) -> dict[str, Any]:
    """Return what a record says of an adapter, as plain data: its base, kind and sizes.

    Raises:
        ConfigError: if its config cannot be read.
    """
    config = read_adapter(folder)
    base = str(config.get("base_model_name_or_path"))
    # Where a folder lies is nobody's business.
    found = {"base": Path(base).name if Path(base).exists() else base}
    # PEFT reads modules as a set, so their order says nothing.
    return {**found, **{k: sorted(v) if isinstance(v, list) else v for k, v in config.items() if k in _TOLD}}


def base_folder(folder: str | Path) -> Path:
    """Return the folder of the model that an adapter belongs on: a folder, or a model of the Hub that is here already.

    Raises:
        ConfigError: if the config names none, or it is not on this machine.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    config = read_adapter(folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{folder}/{ADAPTER_CONFIG} names no base_model_name_or_path; save the adapter again")
    if Path(base).is_dir():
        return Path(base)
    try:
        return Path(snapshot_download(base, revision=config.get("revision"), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"{folder} is an adapter on {base}, which is neither a folder nor downloaded; run `hf download {base}`, "
            "or correct base_model_name_or_path"
        ) from error


def adapter_weights(folder: str | Path) -> Path:
    """Return the file of the adapter's weights.

    Raises:
        ConfigError: if there is none.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS} (no other format is read); save the adapter again")
    return file


def whole_model(folder: str | Path) -> Path:
    """Return the folder of the whole model: the base of an adapter, else `folder` itself.

    Raises:
        ConfigError: if the base of an adapter, or its weights, are not here.
        MissingDependencyError: if `folder` holds an adapter and peft is not installed.
    """
    if not is_adapter(folder):
        return Path(folder)
    require("peft", "models with adapters")
    adapter_weights(folder)
    return base_folder(folder)
