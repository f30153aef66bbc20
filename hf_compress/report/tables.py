"""Tables of records, and the only place where numbers are formatted, subtracted and divided.

Level: base. Cards, notes and plots use these helpers, so that one pair of numbers never reads two ways.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.measurement.record import Measurement, Record, sort_records

# Rows about size and speed, in the order of a table; every other metric is about quality and comes first.
SIZE_METRICS = ("parameters", "nonzeros", "sparsity", "bytes_on_disk", "adapter_bytes", "macs")
SPEED_METRICS = ("latency", "throughput", "peak_memory", "load_time")
_HIDDEN = ("folder_bytes",)
_LABELS = {
    "nonzeros": "nonzero parameters",
    "bytes_on_disk": "weights on disk",
    "adapter_bytes": "of which the adapter",
    "peak_memory": "peak memory",
    "load_time": "time to load",
    "macs": "multiply-accumulates of a pass",
}
# Two measurements are compared only if all of these are the same.
_CONDITION_LABELS = {
    "batch_size": "batch {}",
    "length": "length {}",
    "image": "image {}",
    "samples": "{} audio samples",
    "features": "features {}",
    "device": "{}",
    "threads": "{} threads",
}
# Timings closer than this are called equal: repeated runs on a shared machine differ by as much.
NOISE = 0.05
NOT_MEASURED = "-"


@dataclass(frozen=True)
class Row:
    """One metric under the same conditions: the measurement of each record, None where there is none."""

    name: str
    label: str
    measurements: tuple[Measurement | None, ...]


def is_quality(name: str) -> bool:
    """Say whether a metric is about quality, that is neither size nor speed."""
    return name not in SIZE_METRICS + SPEED_METRICS + _HIDDEN


def format_value(measurement: Measurement) -> str:
    """Return a measurement in the unit that a person would choose."""
    value, unit = measurement.value, measurement.unit
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if unit == "bytes":
        return _format_bytes(value)
    if unit == "MACs":
        return f"{significant(value / 1e9 if value >= 1e9 else value / 1e6)} {'G' if value >= 1e9 else 'M'}"
    if unit == "parameters":
        return f"{round(value):,}"
    return f"{significant(value)} {unit}" if unit else significant(value)


def ratio(value: Measurement, base: Measurement) -> float | None:
    """Return value / base, None where base is 0."""
    return value.value / base.value if base.value else None


def format_change(value: Measurement, base: Measurement) -> str:
    """Return how `value` differs from `base`: points for fractions, a difference for other quality, else a ratio.

    Times and throughputs that are worse by more than the noise say "slower".
    """
    if value.unit == "fraction":
        # Adding 0.0 turns -0.0 into 0.0.
        return f"{round(100 * (value.value - base.value), 2) + 0.0:+.2f} points"
    change = ratio(value, base)
    if is_quality(value.name) or change is None:
        return _signed(value.value - base.value)
    return f"x{change:.2f}" + (", slower" if is_slower(value, base) else "")


def format_spread(measurement: Measurement) -> str | None:
    """Return how far apart the samples are: between the quartiles, and what 19 of 20 stay under; None if too few."""
    if measurement.spread is None:
        return None
    most = significant(measurement.percentile(0.95) or 0.0)
    return f"{significant(measurement.spread)} {measurement.unit}, 95 % within {most} {measurement.unit}"


def is_slower(value: Measurement, base: Measurement) -> bool:
    """Say whether a latency or throughput is worse than `base` by more than the noise."""
    change = ratio(value, base)
    if change is None:
        return False
    return (value.name == "latency" and change > 1 + NOISE) or (value.name == "throughput" and change < 1 - NOISE)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with at least `digits` significant digits, without exponent."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def describe_conditions(conditions: dict[str, Any]) -> str:
    """Return the conditions that make measurements comparable as words: "batch 1, length 128, cpu, 2 threads"."""
    return ", ".join(text.format(conditions[key]) for key, text in _CONDITION_LABELS.items() if key in conditions)


def comparison_rows(records: Sequence[Record]) -> list[Row]:
    """Line up what was measured of several models: quality, size, speed.

    Raises:
        RecordError: if the models' quality was measured on different data, or the models on different machines.
    """
    _check_same_place(records)
    found: dict[tuple[str, tuple[Any, ...]], list[Measurement | None]] = {}
    for position, record in enumerate(records):
        for measurement in record.measurements:
            if measurement.name in _HIDDEN:
                continue
            same = (measurement.unit, *(measurement.conditions.get(c) for c in _CONDITION_LABELS))
            key = (measurement.name, same)
            found.setdefault(key, [None] * len(records))[position] = measurement
    samples = _sample_count(records)
    rows = [Row(name, _label(name, row, samples), tuple(row)) for (name, _), row in found.items()]
    return sorted(rows, key=lambda row: _rank(row.name))


def compare_table(records: Iterable[Record], style: str = "text") -> str:
    """Return a table: metrics down, models across, each with its change against the baseline.

    Args:
        records: of one run; any order.
        style: "text", "markdown" or "html".

    Raises:
        RecordError: if there are no records, more than one baseline, or quality on different data.
    """
    records = sort_records(records)
    base = baseline_index(records)
    cells = [["", *(f"{r.model} ({r.role})" for r in records)]]
    for row in comparison_rows(records):
        reference = None if base is None else row.measurements[base]
        cells.append([row.label, *(_cell(m, reference) for m in row.measurements)])
    return draw_table(cells, style)


def baseline_index(records: Sequence[Record]) -> int | None:
    """Return the position of the baseline, None if there is none.

    Raises:
        RecordError: if there are no records or more than one baseline.
    """
    if not records:
        raise RecordError("there are no records to compare")
    found = [i for i, record in enumerate(records) if record.role == "baseline"]
    if len(found) > 1:
        raise RecordError(f"expected one baseline, found {', '.join(records[i].model for i in found)}")
    return found[0] if found else None


def draw_table(cells: Sequence[Sequence[str]], style: str = "text") -> str:
    """Draw rows of cells, the first one as header, as "text", "markdown" or "html"."""
    if style == "html":
        rows = [[html.escape(cell) for cell in row] for row in cells]
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "\n".join(f"<tr><th>{r[0]}</th>{''.join(f'<td>{c}</td>' for c in r[1:])}</tr>" for r in rows[1:])
        return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"
    if style == "markdown":
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
        return "\n".join([lines[0], "| --- |" + " ---: |" * (len(cells[0]) - 1), *lines[1:]])
    if style != "text":
        raise RecordError(f"style must be 'text', 'markdown' or 'html', found {style!r}")
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def _cell(measurement: Measurement | None, base: Measurement | None) -> str:
    if measurement is None:
        return NOT_MEASURED
    if base is None or base is measurement:
        return format_value(measurement)
    return f"{format_value(measurement)} ({format_change(measurement, base)})"


def _label(name: str, row: Iterable[Measurement | None], samples: int | None) -> str:
    label = _LABELS.get(name, name)
    if is_quality(name):
        return label if samples is None else f"{label} ({samples} samples)"
    conditions = describe_conditions(dict(next(m for m in row if m is not None).conditions))
    return f"{label} ({conditions})" if conditions else label


def _check_same_place(records: Iterable[Record]) -> None:
    """Refuse to compare what was not measured in the same place; what is counted is the same everywhere."""
    measured = [r for r in records if any(m.name not in SIZE_METRICS + _HIDDEN for m in r.measurements)]
    for record in measured[1:]:
        # Threads are a condition of each measurement.
        keys = (measured[0].environment.keys() | record.environment.keys()) - {"threads"}
        other = [k for k in sorted(keys) if measured[0].environment.get(k) != record.environment.get(k)]
        if other:
            raise RecordError(
                f"{measured[0].model} and {record.model} were not measured in the same place: {', '.join(other)} "
                "differ, so they cannot be compared; measure both in one run"
            )


def _sample_count(records: Iterable[Record]) -> int | None:
    data = [dict(r.dataset) for r in records if any(is_quality(m.name) for m in r.measurements)]
    if any(d != data[0] for d in data):
        raise RecordError("the models' quality was measured on different data, so it cannot be compared")
    return data[0].get("samples") if data else None


def _rank(name: str) -> int:
    known = SIZE_METRICS + SPEED_METRICS
    return known.index(name) if name in known else -1


def _signed(value: float) -> str:
    # Two decimals would show the difference of two small losses as none.
    if 0 < abs(value) < 0.1:
        return f"{'-' if value < 0 else '+'}{significant(abs(value), 2)}"
    return f"{round(value, 2) + 0.0:+.2f}"


def _format_bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{round(value)} bytes"
