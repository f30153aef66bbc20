"""Pictures of a pruning run: the ramp beside the loss, and how sparse each weight became.

Level: outside. matplotlib is imported inside functions; the data are plain, from the Trainer's log and the pruner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.report.plots import BASELINE, INK, OTHER, new_axes, style

# A number between dots is the index of a layer.
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def plot_training(log_history: Sequence[Mapping[str, Any]], axes: Any = None) -> Any:
    """Draw the training loss and, on the right axis, the sparsity and what the schedule asked for, over the steps.

    Args:
        log_history: `trainer.state.log_history` of a run that prunes; entries without a loss or sparsity are left out.
        axes: matplotlib axes to draw in; None makes new ones.

    Returns:
        The axes of the loss.

    Raises:
        RecordError: if no entry has both a loss and a sparsity.
    """
    entries = [e for e in log_history if "loss" in e and "sparsity" in e]
    if not entries:
        raise RecordError("no entry of the log has both a loss and a sparsity; train with a pruning callback first")
    axes = axes if axes is not None else new_axes()
    style(axes)
    steps = [e["step"] for e in entries]
    (loss,) = axes.plot(steps, [e["loss"] for e in entries], color=INK, linewidth=1.2, label="training loss")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("training loss")
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    lines = [loss]
    if all("target_sparsity" in e for e in entries):
        targets = [100 * e["target_sparsity"] for e in entries]
        lines += right.plot(steps, targets, color=BASELINE, linewidth=3, alpha=0.35, label="schedule")
    lines += right.plot(steps, [100 * e["sparsity"] for e in entries], color=OTHER, linewidth=1.5, label="sparsity")
    evaluated = [e for e in log_history if "eval_loss" in e]
    if evaluated:
        lines += axes.plot(
            [e["step"] for e in evaluated],
            [e["eval_loss"] for e in evaluated],
            "o",
            color=INK,
            label="evaluation loss",
        )
    right.set_ylabel("sparsity in %")
    right.set_ylim(0, 100)
    axes.legend(lines, [line.get_label() for line in lines], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return axes


def plot_sparsities(sparsities: Mapping[str, float], axes: Any = None) -> Any:
    """Draw how sparse each weight is: layers across, kinds of weights down, each cell with its sparsity in percent.

    Args:
        sparsities: fraction of zeros by parameter name, 0-1, such as `pruner.sparsities`.
        axes: matplotlib axes to draw in; None makes new ones of fitting size.

    Returns:
        The axes.

    Raises:
        RecordError: if there is none.
    """
    if not sparsities:
        raise RecordError("there are no sparsities to draw; attach the pruner to a model first")
    return plot_grid(sparsities, "zeros in %", axes)


def plot_grid(values: Mapping[str, float], title: str, axes: Any = None) -> Any:
    """Draw fractions by parameter name: layers across, kinds of weights down, each cell in percent.

    Args:
        values: 0-1, by parameter name.
        title: above the picture.
        axes: matplotlib axes to draw in; None makes new ones of fitting size.
    """
    cells = {_cell(name): value for name, value in values.items()}
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    if axes is None:
        axes = new_axes((2.5 + 0.62 * max(4, len(layers)), 1.2 + 0.4 * len(kinds)))
    grid = [[100 * cells[k, layer] if (k, layer) in cells else float("nan") for layer in layers] for k in kinds]
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=130, aspect="auto")
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            if value == value:  # cells of kinds that a layer lacks are NaN
                color = "white" if value > 65 else INK
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(layers)), ["-" if layer < 0 else str(layer) for layer in layers])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _cell(name: str) -> tuple[str, int]:
    """Split "encoder.layer.3.output.dense.weight" into what it is and the number of its layer, -1 without one."""
    name = name.removesuffix(".weight")
    found = _LAYER.search(name)
    if not found:
        return name, -1
    return name[found.end() :] or name[: found.start()], int(found[1])
