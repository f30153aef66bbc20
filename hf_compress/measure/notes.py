"""Sentences that a reader must know beside the numbers: where a model is slower, and what zeros do not buy.

Level: state. Computed from records only.
"""

from __future__ import annotations

from typing import Any

from hf_compress.measure.record import Measurement, Record
from hf_compress.report.tables import NOISE, describe_conditions, format_change, format_value, is_slower, ratio

# Biases that start at zero and padding rows are a few in a thousand; below this, nobody asked for zeros.
_FEW_ZEROS = 0.01


def honest_notes(record: Record, baseline: Record | None) -> tuple[str, ...]:
    """Return what must be said of `record` beside its numbers.

    Args:
        record: of the model in question.
        baseline: of the model it is compared with; None or itself if there is none.
    """
    notes = list(_zero_notes(record))
    if baseline is not None and baseline is not record:
        notes = [*_slow_notes(record, baseline), *_bigger_notes(record, baseline), *notes]
    return tuple(notes)


def _slow_notes(record: Record, baseline: Record) -> list[str]:
    reason = _reason(record.method)
    return [
        f"slower than the baseline at {describe_conditions(dict(m.conditions))} "
        f"({format_value(m)} against {format_value(base)}, {_times(m, base)}){reason}"
        for m in record.find("latency")
        if (base := _same(baseline, m)) is not None and is_slower(m, base)
    ]


def _bigger_notes(record: Record, baseline: Record) -> list[str]:
    kinds = {"bytes_on_disk": "its weights take more disk space", "peak_memory": "it needs more memory"}
    return [
        f"{text} than the baseline ({format_value(m)} against {format_value(base)})"
        for name, text in kinds.items()
        for m in record.find(name)
        if (base := _same(baseline, m)) is not None and (ratio(m, base) or 1) > 1 + NOISE
    ]


def _zero_notes(record: Record) -> list[str]:
    return [
        f"{format_value(m)} of the weights are zero, but they are stored and multiplied like any other "
        "(dense kernels do not use zeros): they make the model neither smaller nor faster"
        for m in record.find("sparsity")
        if m.value >= _FEW_ZEROS
    ]


def _reason(method: Any) -> str:
    config = method.get("quantization_config") or {}
    if config.get("quant_method") != "bitsandbytes":
        return ""
    if config.get("load_in_4bit"):
        dtype = config.get("bnb_4bit_compute_dtype", "float32")
        return f": bitsandbytes stores weights in few bits but unpacks them in every call and computes in {dtype}"
    return ": bitsandbytes stores weights in few bits but quantizes activations and rescales results in every call"


def _times(value: Measurement, base: Measurement) -> str:
    return format_change(value, base).removesuffix(", slower")


def _same(baseline: Record, measurement: Measurement) -> Measurement | None:
    """Return the baseline's measurement under the same conditions, None if there is none."""
    wanted = describe_conditions(dict(measurement.conditions))
    found = [m for m in baseline.find(measurement.name) if describe_conditions(dict(m.conditions)) == wanted]
    return found[0] if found else None
