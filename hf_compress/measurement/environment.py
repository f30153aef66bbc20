"""Where a measurement was made: processor, device, threads, versions. No host names and no paths.

Level: state.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "bitsandbytes", "hf_compress")


def default_device() -> str:
    """Return "cuda" if there is a GPU that torch can use, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, Any]:
    """Describe this machine and the installed packages as plain data."""
    device = default_device()
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor_name() -> str:
    # platform.processor() is empty or just "x86_64" on Linux.
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
