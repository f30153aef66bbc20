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

_CPUINFO = Path("/proc/cpuinfo")
# What products in 8 and 16 bit are fast with; processors of one name may differ in them, and so by several times.
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16",
)  # fmt: skip
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "bitsandbytes", "hf_compress")


def default_device() -> str:
    """Return "cuda" if there is a GPU that torch can use, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, Any]:
    """Describe this machine and the installed packages as plain data."""
    device, flags = default_device(), _flags()
    return {
        # platform.processor() is empty or just "x86_64" on Linux.
        "processor": _from_cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _flags() -> set[str]:
    # Of x86 and of ARM.
    return set(f"{_from_cpuinfo('flags')} {_from_cpuinfo('Features')}".split())


def _from_cpuinfo(field: str) -> str:
    try:
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() == field:
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
