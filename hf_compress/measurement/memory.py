"""How much memory a model needs at its peak, to load it and run one forward pass, and how long loading takes.

Level: state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_compress.errors import UnsupportedError
from hf_compress.measurement.adapter import whole_model
from hf_compress.measurement.environment import default_device
from hf_compress.measurement.exported import is_exported
from hf_compress.measurement.load import model_class, weight_files
from hf_compress.measurement.record import Measurement


def measure_peak_memory(
    folder: str | Path,
    batch_size: int = 1,
    *,
    length: int | None = None,
    device: str | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> list[Measurement]:
    """Measure the peak memory and the time of loading a saved model, and of one forward pass, in a fresh process.

    On a CPU it is the largest resident set minus the resident set after the imports; on a GPU the largest amount that
    torch had allocated.

    Args:
        folder: of the saved model.
        batch_size: examples in the forward pass.
        length: as in `dummy_inputs`.
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        inputs: a batch of the model, whose rows are repeated to `batch_size`; None makes up one.

    Returns:
        "peak_memory" in bytes, and "load_time" in seconds, with the libraries imported and the files in the cache of
        the system where they fit.

    Raises:
        ConfigError: if the folder is missing, is no saved model, or lacks weights.
        UnsupportedError: if the process fails, with the last line that it wrote.
    """
    whole = whole_model(folder)
    if not is_exported(whole):
        model_class(whole)
    weight_files(whole)
    device = device or default_device()
    request: dict[str, Any] = {
        "folder": str(Path(folder).resolve()),
        "batch_size": batch_size,
        "length": length,
        "device": device,
        "threads": torch.get_num_threads(),
    }
    answer = _ask(request, inputs)
    where = {"device": device, "threads": request["threads"]}
    conditions = {"batch_size": batch_size, **where, **answer["conditions"]}
    return [
        Measurement("peak_memory", answer["bytes"], "bytes", conditions),
        Measurement("load_time", answer["seconds"], "s", where),
    ]


def _ask(request: dict[str, Any], inputs: Mapping[str, torch.Tensor] | None) -> dict[str, Any]:
    """Return what the process that measures says."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as place:
        if inputs is not None:
            request["sample"] = str(Path(place) / "inputs.safetensors")
            save_file({name: t.detach().cpu().contiguous() for name, t in inputs.items()}, request["sample"])
        done = subprocess.run(
            [sys.executable, "-m", "hf_compress.measurement.memory_worker", json.dumps(request)],
            capture_output=True,
            text=True,
            # So that the worker finds what this process finds, installed or not.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnsupportedError(
            f"the memory of {request['folder']} could not be measured: its process ended with code {done.returncode}: "
            f"{last}"
        )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))
