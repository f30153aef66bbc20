"""Bytes, parameters and latency of saved models.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_compress.report.tables import is_quality
from hf_compress.search.config import LESS_IS_BETTER


def measure_folders(folders: Sequence[Path], batch_size: int, length: int | None) -> list[dict[str, float]]:
    """Return "bytes" of the weights, "parameters" and "latency" (ms) of saved models, timed in turn.

    Args:
        folders: of the models, exported ones too.
        batch_size: of the latency.
        length: tokens of the latency; None: 128.
    """
    from hf_compress.measurement.inputs import dummy_inputs
    from hf_compress.measurement.load import load_measured
    from hf_compress.measurement.size import measure_size
    from hf_compress.measurement.speed import measure_latency

    models = {str(f): load_measured(f) for f in folders}
    times = measure_latency(models, lambda m, n: dummy_inputs(m, n, length), batch_sizes=(batch_size,))
    found = []
    for folder in folders:
        sizes = {m.name: float(m.value) for m in measure_size(folder)}
        latency = next(m.value for m in times[str(folder)] if m.name == "latency")
        found.append({"bytes": sizes["bytes_on_disk"], "parameters": sizes["parameters"], "latency": latency})
    return found


def first_metric(found: Mapping[str, float]) -> tuple[str, int]:
    """Return the first metric of quality among numbers, and 1 if more of it is better, else -1."""
    name = next(n for n in found if is_quality(n) and n not in ("bytes", "parameters", "latency"))
    return name, -1 if name in LESS_IS_BETTER else 1


def drop(found: Mapping[str, float], dense: Mapping[str, float]) -> float:
    """Return how much worse the first metric is than that of the whole model, in its unit; below 0 if it is better."""
    name, sign = first_metric(found)
    return sign * (dense[name] - found[name])


def signed_score(found: Mapping[str, float]) -> float:
    """Return the first metric so that more is better."""
    name, sign = first_metric(found)
    return sign * found[name]
