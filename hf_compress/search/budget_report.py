"""What a search for a budget looked at: a table and a picture.

Level: outside. matplotlib is imported inside functions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.imports import is_available
from hf_compress.report.plots import BASELINE, INK, OTHER, new_axes, save_plot, style
from hf_compress.report.tables import draw_table, significant
from hf_compress.search.candidate import Candidate

_SHOWN = 20
# First word of a step's file in `state` -> what it was spent on.
_STEPS = {
    "corner": "building models, untrained, to be measured",
    "corners": "measuring them",
    "dense": "measuring the whole model",
    "losses": "what each cut and each form does alone",
    "built": "measuring the best candidates, untrained",
    "tried": "cutting and training the best few briefly",
    "final": "cutting and training the chosen one",
    "measured": "measuring it",
}
# Limit -> what is drawn across: the number, its label and how much is one on the axis.
_AXES = {
    "max_latency": ("latency", "latency in ms", 1.0),
    "max_bytes": ("bytes", "weights on disk in MB", 1e6),
    "max_params": ("parameters", "parameters in millions", 1e6),
}


@dataclass(frozen=True)
class Outlook:
    """What was expected of a candidate.

    Args:
        candidate: what it is.
        loss: expected distance of its predictions before training, in nats.
        predicted: "bytes", "parameters" and "latency".
        measured: the same, of those that were built; None for the others.
        fits: whether it was predicted to keep to the budget.
        score: on the validation split after brief training; None if it was not tried.
    """

    candidate: Candidate
    loss: float
    predicted: Mapping[str, float]
    measured: Mapping[str, float] | None
    fits: bool
    score: float | None


def write_budget_report(
    folder: Path, chosen: Candidate, limits: Mapping[str, float], outlooks: Sequence[Outlook]
) -> list[Path]:
    """Write budget.md and, if matplotlib is installed, budget.png; returns the pictures."""
    pictures = []
    if is_available("matplotlib"):
        pictures = [save_plot(plot_outlooks(outlooks, chosen, limits), folder / "budget.png")]
    ranked = sorted((o for o in outlooks if o.fits), key=lambda o: (o.score is None, -(o.score or 0.0), o.loss))
    header = ["", "expected loss in nats", "bytes", "parameters", "ms", "tried"]
    asked = ", ".join(f"{name} {limit:,.4g}" for name, limit in limits.items())
    parts = [
        "# Fitted to a budget",
        f"Asked: {asked}. Chosen: {chosen}. {len(ranked)} of {len(outlooks)} candidates were predicted to keep to it; "
        f"the best {min(len(ranked), _SHOWN)} of them, sizes and times predicted, and measured where a second number "
        "stands:",
        draw_table([header, *(_line(o) for o in ranked[:_SHOWN])], "markdown"),
        *(f"![candidates]({p.name})" for p in pictures),
        "What it cost:",
        draw_table([["", "steps", "seconds"], *costs(folder)], "markdown"),
    ]
    part = folder / "budget.md.part"
    part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(part, folder / "budget.md")
    return pictures


def costs(folder: Path) -> list[list[str]]:
    """Return what the steps of a search were spent on: what, how many, and seconds in all."""
    spent: dict[str, list[float]] = {}
    for mark in (folder / "state").glob("*.json"):
        # How many steps of training fit in was found out within what asked for it.
        kind = mark.stem.split("-")[0]
        if kind in _STEPS:
            spent.setdefault(kind, []).append(json.loads(mark.read_text(encoding="utf-8"))["seconds"])
    return [[text, str(len(spent[kind])), f"{sum(spent[kind]):.0f}"] for kind, text in _STEPS.items() if kind in spent]


def _line(outlook: Outlook) -> list[str]:
    def pair(name: str) -> str:
        real = "" if outlook.measured is None else f" / {outlook.measured[name]:,.4g}"
        return f"{outlook.predicted[name]:,.4g}{real}"

    tried = "" if outlook.score is None else significant(abs(outlook.score), 4)
    return [str(outlook.candidate), significant(outlook.loss), *map(pair, ("bytes", "parameters", "latency")), tried]


def plot_outlooks(
    outlooks: Sequence[Outlook], chosen: Candidate, limits: Mapping[str, float], axes: Any = None
) -> Any:
    """Draw all candidates: expected loss against what is limited, the limit, and the chosen one.

    Args:
        outlooks: of all candidates.
        chosen: the one that was made.
        limits: absolute; latency is drawn if it is limited, else bytes, else parameters.
        axes: matplotlib axes to draw in; None makes new ones.

    Returns:
        The axes.
    """
    limit = next(n for n in _AXES if n in limits)
    what, label, unit = _AXES[limit]
    axes = axes if axes is not None else new_axes((7, 4.5))
    style(axes)
    for form, mark in zip(dict.fromkeys(o.candidate.form for o in outlooks), "os^Dv", strict=False):
        # Those within are drawn last: others of the same cut may lie at the same place, over another limit.
        for fits, color in ((False, "#bbbbbb"), (True, OTHER)):
            some = [o for o in outlooks if o.candidate.form == form and o.fits == fits]
            name = f"{form}, {'within' if fits else 'over'} the budget"
            places, losses = [o.predicted[what] / unit for o in some], [max(o.loss, 1e-6) for o in some]
            if some:
                axes.plot(places, losses, mark, color=color, markersize=4, label=name)
    best = next(o for o in outlooks if o.candidate == chosen)
    axes.plot(
        [best.predicted[what] / unit], [max(best.loss, 1e-6)], "*", color=BASELINE, markersize=16, label="chosen"
    )
    axes.axvline(limits[limit] / unit, color=INK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel(f"{label}, predicted (dashed: the limit)")
    axes.set_ylabel("expected loss before training in nats")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return axes
