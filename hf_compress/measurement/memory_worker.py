"""The process in which `measure_peak_memory` loads a model; prints the peak in bytes.

Level: state. Run as: python -m hf_compress.measurement.memory_worker '{"folder": ..., "batch_size": 1, ...}'
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_compress.measurement.adapter import is_adapter, whole_model
from hf_compress.measurement.exported import is_exported
from hf_compress.measurement.inputs import describe_inputs, dummy_inputs, floating_dtype, sized_inputs
from hf_compress.measurement.load import is_quantized, load_measured, load_model, model_class


def peak_of(folder: str, batch_size: int, length: int | None, device: str, sample: str = "") -> dict[str, Any]:
    """Load the model and run one forward pass; return the peak memory, the time to load and the conditions."""
    _warm_up(folder)
    rows = load_file(sample) if sample else None
    before = _resident_bytes()
    begin = time.perf_counter()
    model = load_measured(folder, device)
    seconds = time.perf_counter() - begin
    inputs = sized_inputs(model, batch_size, length, rows)
    with torch.inference_mode():
        model(**inputs)
    _touch(model)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident_bytes() - before
    dtype = str(floating_dtype(model)).removeprefix("torch.")
    return {"bytes": peak, "seconds": seconds, "conditions": {**describe_inputs(inputs), "dtype": dtype}}


def _warm_up(folder: str) -> None:
    # What libraries and the thread pool take is no property of the model, so it is here before counting starts.
    # transformers imports part of itself only when a first model is loaded, so a tiny one is.
    from transformers import BertConfig, BertModel

    if is_adapter(folder):
        import peft  # noqa: F401
    whole = whole_model(folder)
    if is_exported(whole):
        import transformers.exporters  # noqa: F401
    else:
        model_class(whole)
    if is_quantized(whole):
        import bitsandbytes  # noqa: F401
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    with tempfile.TemporaryDirectory() as tiny, torch.inference_mode():
        BertModel(BertConfig(vocab_size=8, max_position_embeddings=8, **sizes)).save_pretrained(tiny)
        model = load_model(tiny, "cpu")
        model(**dummy_inputs(model, 1))
    torch.nn.functional.linear(torch.ones(256, 256), torch.ones(256, 256))


def _touch(model: torch.nn.Module) -> None:
    # Weights are mapped from the file: rows of an embedding that one input does not use would not count as resident.
    for tensor in model.parameters():
        # Quantized weights are made of plain tensors.
        names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        for part in [getattr(tensor, name) for name in names] or [tensor]:
            part.detach().flatten()[::256].clone()


def _resident_bytes() -> int:
    """Return the resident set, from which on the peak is counted anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status_bytes("VmRSS")
    except OSError:  # not Linux, or not allowed: the peak of the imports counts as their size
        return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    try:
        return _status_bytes("VmHWM")
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def main() -> None:
    """Read the request from the command line and print the answer as the last line of standard output."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request.pop("threads"))
    print(json.dumps(peak_of(**request)))


if __name__ == "__main__":
    main()
