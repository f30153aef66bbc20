"""Models in memory: what `measure` says of one that no folder holds, such as a module of your own class.

Level: state.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from hf_compress.errors import UnsupportedError
from hf_compress.measurement.parts import describe_weights
from hf_compress.measurement.record import Measurement
from hf_compress.measurement.size import count_parameters

WEIGHTS = "model.safetensors"


def save_weights(model: nn.Module, folder: str | Path) -> Path:
    """Write the weights of any module as safetensors, tied ones once; `safetensors.torch.load_model` reads them.

    Returns:
        The file, `model.safetensors` in `folder`, which is made if it is missing.
    """
    from safetensors.torch import save_model

    path = Path(folder) / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path), metadata={"format": "pt"})
    return path


def measure_object(model: nn.Module) -> list[Measurement]:
    """Measure a model in memory.

    Returns:
        bytes_on_disk (of its weights as safetensors), parameters, nonzeros and sparsity.

    Raises:
        UnsupportedError: if its weights are quantized, so that what is stored says nothing of how many there are.
    """
    if getattr(model, "is_quantized", False):
        raise UnsupportedError(
            f"this {type(model).__name__} is quantized, and its weights in memory are codes; save it and measure the "
            "folder"
        )
    with tempfile.TemporaryDirectory() as folder:
        size = save_weights(model, folder).stat().st_size
    counts = count_parameters(model)
    return [
        Measurement("bytes_on_disk", size, "bytes"),
        *(Measurement(name, count, "parameters") for name, count in counts.items()),
        Measurement("sparsity", 1 - counts["nonzeros"] / max(1, counts["parameters"]), "fraction"),
    ]


def describe_object(model: nn.Module) -> dict[str, Any]:
    """Return the class of a model in memory and what its weights consist of, as plain data."""
    with tempfile.TemporaryDirectory() as folder:
        return {"architecture": type(model).__name__, "parts": describe_weights([save_weights(model, folder)])}
