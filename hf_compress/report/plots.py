"""Pictures of records: quality against size and against latency.

Level: outside. matplotlib is imported inside functions and draws without a display; torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.imports import require
from hf_compress.measurement.record import Measurement, Record, sort_records
from hf_compress.report.tables import baseline_index, describe_conditions, is_quality

BASELINE, OTHER, INK = "#b3541e", "#1f5a96", "#333333"
# Largest over smallest value up to which a linear axis shows both well.
_LINEAR_SPAN = 6
# Where the name of a point may stand, in points from it, best first.
_LABEL_PLACES = (
    ((0, 14), "center"), ((0, -14), "center"), ((10, 12), "left"), ((10, -12), "left"), ((-10, 12), "right"),
    ((-10, -12), "right"), ((12, 26), "left"), ((12, -26), "left"), ((0, 28), "center"), ((0, -28), "center"),
    ((-12, 26), "right"), ((-12, -26), "right"), ((0, 42), "center"), ((0, -42), "center"), ((0, 14), "center"),
)  # fmt: skip
# Steps of one recipe are joined by arrows; more models than this are alternatives.
_LONGEST_CHAIN = 4


def plot_quality_size(records: Iterable[Record], metric: str | None = None, axes: Any = None) -> Any:
    """Draw a quality metric against the weights on disk.

    Args:
        records: of one run; models without both numbers are left out.
        metric: name of the quality metric; None takes the first one of the first record.
        axes: matplotlib axes to draw in; None makes new ones.

    Returns:
        The axes.

    Raises:
        RecordError: if no record has both numbers.
    """
    return _plot(sort_records(records), "bytes_on_disk", {}, metric, axes)


def plot_quality_latency(
    records: Iterable[Record], metric: str | None = None, axes: Any = None, batch_size: int = 1
) -> Any:
    """Draw a quality metric against latency, with the spread of the samples (first to third quartile).

    Args:
        records: of one run; models without both numbers are left out.
        metric: name of the quality metric; None takes the first one of the first record.
        axes: matplotlib axes to draw in; None makes new ones.
        batch_size: whose latency is drawn.

    Returns:
        The axes.

    Raises:
        RecordError: if no record has both numbers.
    """
    return _plot(sort_records(records), "latency", {"batch_size": batch_size}, metric, axes)


def save_plot(axes: Any, path: str | Path) -> Path:
    """Write the picture that holds `axes` as PNG, on white, so that it reads on dark pages too."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return Path(path)


def _plot(records: list[Record], x_name: str, conditions: dict[str, Any], metric: str | None, axes: Any) -> Any:
    metric = metric or first_quality_metric(records)
    points = [(r, *pair) for r in records if (pair := _pair(r, x_name, conditions, metric))]
    if not points or metric is None:
        raise RecordError(f"no record has both {x_name} {conditions or ''} and {metric or 'a quality metric'}")
    baseline_index(records)
    axes = axes if axes is not None else new_axes()
    style(axes)
    scale, unit = _scale([x for _, x, _ in points])
    factor = 100 if points[0][2].unit == "fraction" else 1
    positions = [(x.value / scale, y.value * factor) for _, x, y in points]
    is_chain = len(points) <= _LONGEST_CHAIN
    if is_chain:
        _draw_arrows(axes, positions)
    for (record, x, _), position in zip(points, positions, strict=True):
        _draw_point(axes, record, position, _error(x, scale))
    first = points[0][1]
    # Threads, lengths and so on may differ by record only if a user mixes runs; the label names those of the first.
    what = describe_conditions(dict(first.conditions))
    axes.set_xlabel(f"latency in ms ({what})" if x_name == "latency" else f"weights on disk in {unit}")
    axes.set_ylabel(f"{metric} in %" if factor == 100 else f"{metric} in {points[0][2].unit}")
    ends = [p + (e[1] if (e := _error(x, scale)) else 0) for (_, x, _), (p, _) in zip(points, positions, strict=True)]
    _set_x_axis(axes, [x for x, _ in positions] + ends)
    axes.margins(y=0.25)
    _write_names(axes, [record for record, _, _ in points], positions, is_chain)
    return axes


def first_quality_metric(records: Iterable[Record]) -> str | None:
    """Return the name of the first quality metric in the records, None if there is none."""
    return next((m.name for r in records for m in r.measurements if is_quality(m.name)), None)


def _pair(
    record: Record, x_name: str, conditions: dict[str, Any], metric: str | None
) -> tuple[Measurement, Measurement] | None:
    xs, ys = record.find(x_name, **conditions), record.find(metric or "")
    return (xs[0], ys[0]) if xs and ys else None


def _scale(xs: list[Measurement]) -> tuple[float, str]:
    if xs[0].unit != "bytes":
        return 1, xs[0].unit
    largest = max(x.value for x in xs)
    return next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if largest >= s), (1e3, "kB"))


def _error(x: Measurement, scale: float) -> tuple[float, float] | None:
    """Return the distances from the median down to the first and up to the third quartile."""
    if x.spread is None:
        return None
    ordered = sorted(x.samples)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return max(0.0, x.value - low) / scale, max(0.0, high - x.value) / scale


def new_axes(size: tuple[float, float] = (6, 4)) -> Any:
    """Return matplotlib axes of a new figure of `size` inches."""
    require("matplotlib", "pictures")
    # Figure without pyplot: no window system, no global list of figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def style(axes: Any) -> None:
    """Give `axes` the look of all pictures."""
    axes.set_facecolor("white")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_point(axes: Any, record: Record, position: tuple[float, float], error: tuple[float, float] | None) -> None:
    is_baseline = record.role == "baseline"
    x_error = [[error[0]], [error[1]]] if error else None
    axes.errorbar(
        *position,
        xerr=x_error,
        fmt="D" if is_baseline else "o",
        markersize=8,
        color=BASELINE if is_baseline else OTHER,
        ecolor=INK,
        elinewidth=1,
        capsize=3,
        zorder=3,
    )


def _set_x_axis(axes: Any, values: list[float]) -> None:
    """Start at zero, or take a logarithmic axis where a linear one would press the small ones into a corner."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if max(values) <= _LINEAR_SPAN * min(values):
        axes.set_xlim(0, max(values) * 1.25)
        return
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _write_names(axes: Any, records: list[Record], positions: list[tuple[float, float]], has_arrows: bool) -> None:
    """Write each name at the first place beside its point where it covers nothing and stays inside the axes."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    points = [axes.transData.transform(position) for position in positions]
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    if has_arrows:
        taken += [Bbox.from_extents(x - 2, y - 2, x + 2, y + 2) for x, y in _along_arrows(points)]
    for record, position in zip(records, positions, strict=True):
        name = f"{record.model} (baseline)" if record.role == "baseline" else record.model
        for number, (offset, align) in enumerate(_LABEL_PLACES, 1):
            text = axes.annotate(
                name,
                position,
                xytext=offset,
                textcoords="offset points",
                ha=align,
                va="center",
                color=INK,
                fontsize=9,
            )
            box = text.get_window_extent()
            is_inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= axes.bbox.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
            if number < len(_LABEL_PLACES):
                text.remove()
        taken.append(box)


def _draw_arrows(axes: Any, positions: list[tuple[float, float]]) -> None:
    for start, end in zip(positions, positions[1:], strict=False):
        arrow = {"arrowstyle": "->", "color": "#888888", "linewidth": 1, "shrinkA": 7, "shrinkB": 7}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=2)


def _along_arrows(points: list[Any]) -> list[tuple[float, float]]:
    """Return places on the lines between successive points."""
    shares = [i / 50 for i in range(1, 50)]
    pairs = list(zip(points, points[1:], strict=False))
    return [(a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for a, b in pairs for t in shares]
