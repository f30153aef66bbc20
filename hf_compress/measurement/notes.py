"""Sentences that a reader must know beside the numbers: where a model is slower, and what zeros do not buy.

Level: state. Computed from records only.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from hf_compress.measurement.record import Measurement, Record
from hf_compress.report.tables import NOISE, describe_conditions, format_change, format_value, is_slower, ratio
from hf_compress.report.wording import is_quantized

# Biases that start at zero and padding rows are a few in a thousand; below this, nobody asked for zeros.
_FEW_ZEROS = 0.01
# Below this part of what the arithmetic promises a reader must be told.
_LAG = 0.75
# Quartiles of latency that are farther apart than this part of the median come from a busy machine.
_NOISY = 0.2
# Medians of blocks, some seconds apart, that differ by more than this part of the median of all.
_DRIFT = 0.05
# Part of a core that others may take before it counts; a machine's own housekeeping stays below.
_OTHER_LOAD = 0.1


def honest_notes(record: Record, baseline: Record | None, source: Record | None = None) -> tuple[str, ...]:
    """Return what must be said of `record` beside its numbers.

    Args:
        record: of the model in question.
        baseline: of the model it is compared with; None or itself if there is none.
        source: of the unquantized model that a quantized one was made from, if it was measured too.
    """
    notes = [*_zero_notes(record), *_noise_notes(record)]
    if baseline is not None and baseline is not record:
        slow = [*_slow_notes(record, baseline, "the baseline"), *_lag_notes(record, baseline)]
        notes = [*slow, *_bigger_notes(record, baseline), *notes]
    if source is not None and source is not baseline:
        notes = [*_slow_notes(record, source, f"{source.model}, which it was quantized from,"), *notes]
    return tuple(notes)


def unquantized_source(record: Record, earlier: Sequence[Record]) -> Record | None:
    """Return the nearest of the `earlier` records that is of the same model, unquantized."""
    if not is_quantized(record) or record.method.get("adapter"):
        return None
    same = (r for r in reversed(earlier) if not is_quantized(r) and _parameters(r) == _parameters(record))
    return next(same, None)


def _parameters(record: Record) -> list[float]:
    return [m.value for m in record.find("parameters")]


def _slow_notes(record: Record, baseline: Record, who: str) -> list[str]:
    reason = _reason(record.method)
    return [
        f"slower than {who} at {describe_conditions(dict(m.conditions))} "
        f"({format_value(m)} against {format_value(base)}, {_times(m, base)}){reason}"
        for m in record.find("latency")
        if (base := _same(baseline, m)) is not None and is_slower(m, base)
    ]


def _lag_notes(record: Record, baseline: Record) -> list[str]:
    """Say where a pass became faster by much less than its arithmetic became smaller."""
    found = []
    for m in record.find("latency"):
        base, work, base_work = _same(baseline, m), _like(record, "macs", m), _like(baseline, "macs", m)
        if base is None or work is None or base_work is None or not work.value or not m.value:
            continue
        fewer, faster = base_work.value / work.value, base.value / m.value
        if fewer > 1 + NOISE and 1 <= faster < _LAG * fewer:
            found.append(
                f"x{faster:.2f} as fast as the baseline at {describe_conditions(dict(m.conditions))}, although it "
                f"needs {fewer:.2f} times fewer multiply-accumulates: what does not shrink with them (memory traffic, "
                "softmax, norms, calls) takes the rest"
            )
    return found


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


def _noise_notes(record: Record) -> list[str]:
    """Say where the machine did something else too, or ran at another speed."""
    return [
        f"the times at {describe_conditions(dict(m.conditions))} {'; '.join(found)}: the machine was noisy, so "
        "differences of that size mean nothing"
        for m in record.find("latency")
        if m.value and (found := list(_noises(m)))
    ]


def _noises(latency: Measurement) -> Iterator[str]:
    if latency.spread is not None and latency.spread > _NOISY * latency.value:
        yield f"vary by {100 * latency.spread / latency.value:.0f} % (first to third quartile)"
    medians = block_medians(latency)
    if max(medians) - min(medians) > _DRIFT * latency.value:
        drift = (max(medians) - min(medians)) / latency.value
        yield f"drift by {100 * drift:.0f} % (medians of {len(medians)} blocks of samples)"
    load = latency.conditions.get("other_load", 0.0)
    if load > _OTHER_LOAD:
        yield f"were taken while other programs kept {load:.1f} cores busy"


def block_medians(latency: Measurement) -> list[float]:
    """Return the median of each block of samples, which were taken some seconds apart; without blocks the value."""
    blocks, samples = int(latency.conditions.get("blocks", 1)), latency.samples
    size = len(samples) // blocks
    if size == 0 or blocks == 1:
        return [latency.value]
    return [statistics.median(samples[i * size : (i + 1) * size]) for i in range(blocks)]


def _reason(method: Any) -> str:
    if method.get("adapter"):
        return ": the adapter is computed beside the layers it changes; merged into its base it costs nothing"
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
    return _like(baseline, measurement.name, measurement)


def _like(record: Record, name: str, measurement: Measurement) -> Measurement | None:
    """Return what was measured by a name under the conditions of another measurement, None if nothing was."""
    wanted = describe_conditions(dict(measurement.conditions))
    found = [m for m in record.find(name) if describe_conditions(dict(m.conditions)) == wanted]
    return found[0] if found else None
