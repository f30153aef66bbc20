"""What a saved model is made of: its files, the bytes of its parts, and each matrix with its zeros.

Level: state.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import torch

from hf_compress.measurement.adapter import adapter_weights, is_adapter, whole_model
from hf_compress.measurement.exported import is_exported
from hf_compress.measurement.load import is_quantized, weight_files

_LAYER = re.compile(r"(?:^|\.)\d+\.")


def describe_parts(folder: str | Path) -> dict[str, Any]:
    """Return what the weights of a saved model consist of, as plain data.

    Returns:
        "files": bytes of each file of weights. Of safetensors also "part_bytes": embeddings, layers and the rest. If
        they are not quantized, "layers": name of each weight with two or more dimensions -> shape and nonzeros.

    Raises:
        ConfigError: if the folder is missing, is no saved model, or lacks weights.
    """
    whole = whole_model(folder)
    files = [*weight_files(whole), *([adapter_weights(folder)] if is_adapter(folder) else [])]
    if is_exported(whole):
        return {"files": _sizes(files)}
    return describe_weights(files, with_layers=not is_quantized(whole))


def describe_weights(files: list[Path], with_layers: bool = True) -> dict[str, Any]:
    """Return what safetensors files consist of, as `describe_parts`; "layers" only if asked for."""
    found: dict[str, Any] = {"files": _sizes(files), "part_bytes": _part_bytes(files)}
    return {**found, "layers": _layers(files)} if with_layers else found


def _sizes(files: list[Path]) -> dict[str, int]:
    return {f.name: f.stat().st_size for f in files}


def _part_bytes(files: list[Path]) -> dict[str, int]:
    sizes = {"embeddings": 0, "layers": 0, "rest": 0}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                sizes[_part(name)] += last - first
    return sizes


def _part(name: str) -> str:
    if "embed" in name or re.search(r"(?:^|\.)w[tp]e\.", name):
        return "embeddings"
    return "layers" if _LAYER.search(name) else "rest"


def _layers(files: list[Path]) -> dict[str, dict[str, Any]]:
    from safetensors import safe_open

    found = {}
    for path in files:
        with safe_open(str(path), framework="pt") as stored:
            for name in stored.keys():
                if len(stored.get_slice(name).get_shape()) < 2:
                    continue
                tensor = stored.get_tensor(name)
                found[name] = {"shape": list(tensor.shape), "nonzeros": int(torch.count_nonzero(tensor))}
    return found
