"""The report of `inspect_model` as text.

Level: base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_compress.architecture.capability import CapabilityReport

TITLES = {
    "ffn": "feed-forward width",
    "layers": "layers",
    "heads": "attention heads",
    "hidden": "hidden width",
    "filters": "width of a stage",
    "head_size": "size of each head",
    "vocabulary": "vocabulary",
}


def _macs(number: int | None) -> str:
    if number is None:
        return "?"
    unit, name = next((u, n) for u, n in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1.0, "")) if number >= u or u == 1.0)
    return f"{number / unit:.3g} {name}".strip()


def _time(milliseconds: float | None, before: str = "") -> str:
    return "" if milliseconds is None else f"{before}{milliseconds:.3g} ms"


def report_lines(report: CapabilityReport) -> list[str]:
    """Return the lines of a table for a terminal."""
    lines = [
        f"{report.model_class} ({report.model_type}): {report.parameters:,} parameters, "
        f"{report.bytes / 1e6:,.1f} MB at float32, {_macs(report.macs)} MACs a sample{_time(report.latency, ', ')}",
        "",
        f"{'what':<20}{'config field':<28}{'now':>8}{'legal':>14}{'per unit':>14}  note",
    ]
    for axis in report.axes:
        legal = f"{axis.smallest}-{axis.size}" if axis.is_offered else "-"
        lines.append(
            f"{TITLES[axis.name]:<20}{axis.field:<28}{axis.size:>8,}{legal:>14}{axis.parameters_per_unit:>14,}  "
            f"{axis.note}"
        )
    lines += [f"{TITLES.get(name, name):<20}cannot be removed: {why}" for name, why in report.fixed.items()]
    predictions = [(axis, prediction) for axis in report.axes for prediction in axis.predictions]
    if predictions:
        header = f"{'after shrinking':<48}{'to':>8}{'parameters':>18}{'MB':>12}{'share':>8}{'MACs':>10}"
        lines += ["", header + (f"{'time':>12}" if report.latency is not None else "")]
    for axis, p in predictions:
        what = f"{TITLES[axis.name]} ({p.field})"
        share = p.parameters / max(report.parameters, 1)
        lines.append(
            f"{what:<48}{p.size:>8,}{p.parameters:>18,}{p.bytes / 1e6:>12,.1f}{share:>8.0%}{_macs(p.macs):>10}"
            f"{_time(p.latency):>12}".rstrip()
        )
    return lines
