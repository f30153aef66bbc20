"""Pictures of what models are made of: bytes of their parts, and what is left of each weight.

Level: outside. matplotlib is imported inside functions; everything comes from records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.measurement.record import Record, sort_records
from hf_compress.report.plots import new_axes, style
from hf_compress.report.training_plots import plot_grid

_COLORS = {"embeddings": "#1f5a96", "layers": "#b3541e", "rest": "#8a8a8a", "program": "#5b7d3a"}


def plot_parts(records: Iterable[Record], axes: Any = None) -> Any:
    """Draw how many bytes of each model are embeddings, layers and the rest; of exported models the whole program.

    Args:
        records: that `measure` made.
        axes: matplotlib axes to draw in; None makes new ones.

    Raises:
        RecordError: if no record says.
    """
    rows = [(r.model, _bytes_of(r)) for r in sort_records(records) if _bytes_of(r)]
    if not rows:
        raise RecordError("no record says what its model is made of; measure the models again")
    axes = axes if axes is not None else new_axes((6.4, 1.4 + 0.45 * len(rows)))
    style(axes)
    largest = max(sum(parts.values()) for _, parts in rows)
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if largest >= s), (1e3, "kB"))
    for position, (_, parts) in enumerate(rows):
        left = 0.0
        for name, size in parts.items():
            axes.barh(position, size / scale, left=left, color=_COLORS[name], height=0.62)
            left += size / scale
        axes.text(left + 0.01 * largest / scale, position, f"{left:.3g}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * largest / scale)
    axes.set_xlabel(f"weights on disk in {unit}")
    used = [name for name in _COLORS if any(name in parts for _, parts in rows)]
    handles = [axes.barh(0, 0, color=_COLORS[name]) for name in used]
    axes.legend(handles, used, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(used), frameon=False)
    return axes


def plot_kept(result: Record, before: Record, axes: Any = None) -> Any:
    """Draw which part of each weight of `before` is left in `result` and not zero, in percent.

    Args:
        result: of the smaller model.
        before: of the model it was made from.
        axes: matplotlib axes to draw in; None makes new ones.

    Raises:
        RecordError: if the records have no weight in common.
    """
    layers, base = (dict(dict(r.method.get("parts", {})).get("layers", {})) for r in (result, before))
    both = {n: v["nonzeros"] / math.prod(base[n]["shape"]) for n, v in layers.items() if n in base}
    if not both:
        raise RecordError(f"{result.model} and {before.model} have no weight of the same name")
    return plot_grid(both, "left of each weight in %", axes)


def _bytes_of(record: Record) -> dict[str, int]:
    parts = dict(record.method.get("parts", {}))
    if "part_bytes" in parts:
        return {name: size for name, size in parts["part_bytes"].items() if size}
    return {"program": sum(parts["files"].values())} if parts.get("files") else {}
