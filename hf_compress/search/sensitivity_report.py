"""Sensitivities as a table and a picture.

Level: outside. matplotlib is imported inside functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.report.plots import INK, new_axes
from hf_compress.report.tables import draw_table, significant
from hf_compress.search.sensitivity import Sensitivity

# A number between dots is the index of a layer.
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
# Below this a change does nothing, as far as float32 tells.
_LEAST = 1e-8


def sensitivity_table(found: Sequence[Sensitivity], style: str = "text") -> str:
    """Return one line a part, with what each level does in nats, the most sensitive first."""
    levels = list(dict.fromkeys(_how(s) for s in sorted(found, key=lambda s: str(s.level))))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for one in found:
        rows.setdefault((one.kind, one.part), {})[_how(one)] = one.loss
    ordered = sorted(rows.items(), key=lambda pair: -max(pair[1].values()))
    cells = [[f"{kind}: {part}", *(_loss(losses.get(n)) for n in levels)] for (kind, part), losses in ordered]
    return draw_table([["divergence in nats", *levels], *cells], style)


def plot_sensitivity(found: Sequence[Sensitivity], axes: Any = None) -> Any:
    """Draw what each change does: layers across, kinds of parts and levels down, darker where predictions move more.

    Args:
        found: of `sensitivity`.
        axes: matplotlib axes to draw in; None makes new ones of fitting size.

    Returns:
        The axes.

    Raises:
        RecordError: if there is nothing.
    """
    if not found:
        raise RecordError("there are no sensitivities to draw")
    cells = {(_row(s), _layer(s.part)): s.loss for s in found}
    rows = sorted({row for row, _ in cells})
    layers = sorted({layer for _, layer in cells})
    if axes is None:
        axes = new_axes((3.5 + 0.75 * max(4, len(layers)), 1.2 + 0.3 * len(rows)))
    missing = float("nan")
    values = [[math.log10(max(_LEAST, cells[r, n])) if (r, n) in cells else missing for n in layers] for r in rows]
    known = [v for line in values for v in line if v == v]
    low, high = min(known), max(known) + 1e-6
    axes.imshow(values, cmap="Oranges", vmin=low, vmax=high + 0.25 * (high - low), aspect="auto")
    for y, row in enumerate(rows):
        for x, layer in enumerate(layers):
            if (row, layer) in cells:
                axes.text(x, y, f"{cells[row, layer]:.1e}", ha="center", va="center", fontsize=6.5, color=INK)
    axes.set_xticks(range(len(layers)), ["-" if n < 0 else str(n) for n in layers])
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel("layer")
    axes.set_title("divergence of the predictions in nats, each part changed alone", fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _row(one: Sensitivity) -> str:
    name = one.part.removesuffix(".weight")
    layer = _LAYER.search(name)
    rest = (name[layer.end() :] or "whole") if layer else name
    return f"{one.kind}: {rest}, {_how(one)}"


def _how(one: Sensitivity) -> str:
    return f"{100 * one.level:.0f} %" if isinstance(one.level, float) else one.level


def _layer(part: str) -> int:
    found = _LAYER.search(part.removesuffix(".weight"))
    return int(found[1]) if found else -1


def _loss(value: float | None) -> str:
    return "-" if value is None else significant(value) if value >= 1e-4 else f"{value:.1e}"
