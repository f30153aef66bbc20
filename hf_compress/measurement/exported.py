"""Models that `transformers.exporters` wrote, run by ONNX Runtime, OpenVINO or ExecuTorch as if they were modules.

Level: state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.errors import ConfigError
from hf_compress.imports import require

MANIFEST = "export.json"
# What `export` writes beside the program: how it was made, and how far it is from the model.
REPORT = "compression.json"
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch"}


def is_exported(folder: str | Path) -> bool:
    """Say whether a folder holds an exported model."""
    return (Path(folder) / MANIFEST).is_file()


def program_files(folder: str | Path) -> list[Path]:
    """Return the files of an exported model's programs, those with its weights too.

    Raises:
        ConfigError: if the manifest cannot be read or names files that are missing.
    """
    folder = Path(folder)
    try:
        components = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["components"]
        names = [component["file"] for component in components.values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder}/{MANIFEST} is no manifest of an exported model: {error}; export it anew"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ConfigError(f"{folder} lacks {', '.join(missing) or 'programs'}, which its {MANIFEST} names")
    # Weights lie beside the graph under its name: model.onnx.data, openvino_model.bin.
    stems = tuple(Path(name).stem for name in names)
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name.startswith(stems) and p.suffix != ".json")


def read_report(folder: str | Path) -> dict[str, Any]:
    """Return what `export` wrote about an exported model; nothing for one that another tool exported."""
    try:
        found = json.loads((Path(folder) / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}/{REPORT} cannot be read: {error}; export the model anew") from error
    return found if isinstance(found, dict) else {}


class ExportedModule(nn.Module):
    """An exported model that is called as the model it was made from, without labels.

    Args:
        folder: that `ExportedModel.save_pretrained` wrote.
        device: where the runtime computes; None takes the runtime's default.
        is_exact: compute in the precision of the program, where OpenVINO would take bfloat16 if the processor has it.

    Raises:
        MissingDependencyError: if the runtime is not installed.
    """

    # Kernels of a runtime are unknown to torch's counters.
    is_quantized = True

    def __init__(self, folder: str | Path, device: str | None = None, is_exact: bool = False) -> None:
        super().__init__()
        program_files(folder)
        kind = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8")).get("export_format", "")
        require(_RUNTIMES.get(kind, kind), f"running a model exported to {kind}")
        from transformers.exporters import ExportedModel

        self.format = kind
        options = _options(kind, is_exact)
        self._exported = ExportedModel.from_pretrained(str(folder), device=device, local_files_only=True, **options)
        self.config = self._exported.config
        self.input_names = tuple(next(iter(self._exported.components.values())).metadata.kwargs)
        kinds = ("input_ids", "pixel_values", "input_values", "input_features")
        self.main_input_name = next((name for name in kinds if name in self.input_names), self.input_names[0])
        # Whoever asks a module for its device and dtype looks at its parameters.
        self._place = nn.Parameter(torch.empty(0, dtype=self._exported.dtype), requires_grad=False)

    def forward(self, **inputs: Any) -> Any:
        """Run the program on the inputs that it was traced with; others, such as labels, are left out."""
        given = {n: t for n, t in inputs.items() if n in self.input_names and t is not None}
        # What the torch model would fill in itself.
        fill = {"token_type_ids": torch.zeros_like, "attention_mask": torch.ones_like}
        missing = [n for n in self.input_names if n not in given and n in fill and "input_ids" in given]
        return self._exported(**given, **{n: fill[n](given["input_ids"]) for n in missing})


def _options(kind: str, is_exact: bool) -> dict[str, Any]:
    """Let the runtime use as many threads as torch does."""
    threads = torch.get_num_threads()
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return {"session_options": options}
    if kind == "openvino":
        precision = {"INFERENCE_PRECISION_HINT": "f32"} if is_exact else {}
        return {"config": {"INFERENCE_NUM_THREADS": threads, **precision}}
    return {}
