"""How big a model is: parameters, zeros, bytes on disk.

Level: state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from hf_compress.architecture.loading import refusing
from hf_compress.errors import ConfigError
from hf_compress.measurement.adapter import adapter_weights, is_adapter, whole_model
from hf_compress.measurement.exported import is_exported, read_report
from hf_compress.measurement.load import is_quantized, load_model, model_class, weight_files
from hf_compress.measurement.record import Measurement


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count the parameters of a model that is not quantized, tied ones once.

    Returns:
        "parameters" and "nonzeros", in elements.
    """
    tensors = [p.detach() for p in model.parameters()]
    return {
        "parameters": sum(t.numel() for t in tensors),
        "nonzeros": sum(int(torch.count_nonzero(t)) for t in tensors),
    }


def measure_size(folder: str | Path) -> list[Measurement]:
    """Measure a saved model by its files.

    Quantized weights count as the weights they stand for. Their zeros are not counted: a stored code of 0 is not a
    weight of 0.

    Returns:
        bytes_on_disk (weights only), folder_bytes, parameters and, unless quantized or exported, nonzeros and
        sparsity. Of an adapter all these with its base, and adapter_bytes without it.

    Raises:
        ConfigError: if the folder is missing, is no saved model, or lacks weights.
        UnsupportedError: if its class is not part of transformers.
    """
    if is_adapter(folder):
        return _with_base(Path(folder))
    files = weight_files(folder)
    found = [
        Measurement("bytes_on_disk", sum(f.stat().st_size for f in files), "bytes"),
        Measurement("folder_bytes", _all_bytes(folder), "bytes"),
    ]
    if is_exported(folder):
        # A program holds constants that are no parameters; only what made it can say how many there were.
        count = read_report(folder).get("parameters")
        return found if count is None else [*found, Measurement("parameters", count, "parameters")]
    skeleton = _skeleton(folder)
    if is_quantized(folder):
        # The files hold packed codes and their scales; the shapes that these stand for are those of the plain model.
        return [*found, Measurement("parameters", sum(p.numel() for p in skeleton.parameters()), "parameters")]
    counts = _count_stored(files, skeleton)
    if counts["parameters"] != sum(p.numel() for p in skeleton.parameters()):
        # The files lack weights of the model or hold others as well; only loading tells which ones it uses.
        with torch.random.fork_rng(devices=[]):
            counts = count_parameters(load_model(folder, "cpu"))
    return [
        *found,
        *(Measurement(name, count, "parameters") for name, count in counts.items()),
        Measurement("sparsity", 1 - counts["nonzeros"] / counts["parameters"], "fraction"),
    ]


def _all_bytes(folder: str | Path) -> int:
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def _with_base(folder: Path) -> list[Measurement]:
    """Measure an adapter together with its base."""
    from safetensors.torch import load_file

    own, base = adapter_weights(folder), measure_size(whole_model(folder))
    tensors = load_file(own).values()
    added = {
        "bytes_on_disk": own.stat().st_size,
        "folder_bytes": _all_bytes(folder),
        "parameters": sum(t.numel() for t in tensors),
        "nonzeros": sum(int(torch.count_nonzero(t)) for t in tensors),
    }
    found = {m.name: Measurement(m.name, m.value + added.get(m.name, 0), m.unit) for m in base}
    if "sparsity" in found:
        zeros = 1 - found["nonzeros"].value / found["parameters"].value
        found["sparsity"] = Measurement("sparsity", zeros, "fraction")
    return [*found.values(), Measurement("adapter_bytes", added["bytes_on_disk"], "bytes")]


def _skeleton(folder: str | Path) -> nn.Module:
    cls = model_class(folder)
    with refusing(ConfigError, str(folder)), torch.device("meta"):
        return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))


def _count_stored(files: list[Path], skeleton: nn.Module) -> dict[str, int]:
    counts = {"parameters": 0, "nonzeros": 0}
    for tensor in _stored_parameters(files, skeleton):
        counts["parameters"] += tensor.numel()
        counts["nonzeros"] += int(torch.count_nonzero(tensor))
    return counts


def _stored_parameters(files: list[Path], skeleton: nn.Module) -> Iterator[torch.Tensor]:
    """Yield each stored parameter, one in memory at a time: no buffers, and tied ones once."""
    from safetensors import safe_open

    buffers = {name for name, _ in skeleton.named_buffers()}
    tied = {name: id(p) for name, p in skeleton.named_parameters(remove_duplicate=False)}
    seen: set[int] = set()
    for path in files:
        with safe_open(str(path), framework="pt") as stored:
            for name in stored.keys():
                if name in buffers or tied.get(name) in seen:
                    continue
                if name in tied:
                    seen.add(tied[name])
                yield stored.get_tensor(name)
