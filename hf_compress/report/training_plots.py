"""Pictures of training: the loss with the ramp of the sparsity, and how sparse each weight became.

Level: outside. matplotlib is imported inside functions; the data are plain, from the Trainer's log and the pruner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_compress.errors import RecordError
from hf_compress.measurement.record import Record
from hf_compress.report.plots import BASELINE, INK, OTHER, new_axes, style

# What of a log is drawn.
_DRAWN = ("step", "loss", "eval_loss", "sparsity", "target_sparsity")
_MOST_ENTRIES = 200
# A number between dots is the index of a layer.
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def plot_training(log_history: Sequence[Mapping[str, Any]], axes: Any = None) -> Any:
    """Draw the training loss over the steps and, on the right axis, the sparsity and what the schedule asked for.

    Args:
        log_history: `trainer.state.log_history`; entries without a loss are left out, and the right axis where
            nothing is pruned.
        axes: matplotlib axes to draw in; None makes new ones.

    Returns:
        The axes of the loss.

    Raises:
        RecordError: if no entry has a loss.
    """
    entries = [e for e in log_history if "loss" in e]
    if not entries:
        raise RecordError("no entry of the log has a loss; train first, with logging_steps below the number of steps")
    axes = axes if axes is not None else new_axes()
    style(axes)
    steps = [e["step"] for e in entries]
    (loss,) = axes.plot(steps, [e["loss"] for e in entries], color=INK, linewidth=1.2, label="training loss")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("training loss")
    lines = [loss, *_draw_ramp(entries, axes)]
    evaluated = [e for e in log_history if "eval_loss" in e]
    if evaluated:
        lines += axes.plot(
            [e["step"] for e in evaluated],
            [e["eval_loss"] for e in evaluated],
            "o",
            color=INK,
            label="evaluation loss",
        )
    axes.legend(lines, [line.get_label() for line in lines], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return axes


def _draw_ramp(entries: Sequence[Mapping[str, Any]], axes: Any) -> list[Any]:
    """Draw the sparsity of the entries that have one on a right axis; nothing if none has."""
    pruned = [e for e in entries if "sparsity" in e]
    if not pruned:
        return []
    right, lines = axes.twinx(), []
    right.spines["top"].set_visible(False)
    steps = [e["step"] for e in pruned]
    if all("target_sparsity" in e for e in pruned):
        targets = [100 * e["target_sparsity"] for e in pruned]
        lines += right.plot(steps, targets, color=BASELINE, linewidth=3, alpha=0.35, label="schedule")
    lines += right.plot(steps, [100 * e["sparsity"] for e in pruned], color=OTHER, linewidth=1.5, label="sparsity")
    right.set_ylabel("sparsity in %")
    right.set_ylim(0, 100)
    return lines


def curves(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return what of a Trainer's log is drawn, evenly thinned to some 200 entries, as plain data for a record."""
    entries = [{k: e[k] for k in _DRAWN if isinstance(e.get(k), (int, float))} for e in log_history]
    entries = [e for e in entries if "loss" in e or "eval_loss" in e]
    return entries[:: max(1, len(entries) // _MOST_ENTRIES)]


def histories(records: Sequence[Record]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the logs of the training runs behind the records, by the name of the stage, each once."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for name, step in record.method.items():
            if isinstance(step, Mapping) and any("loss" in e for e in step.get("history", ())):
                found.setdefault(name, list(step["history"]))
    return found


def plot_histories(records: Sequence[Record]) -> Any:
    """Draw each training run behind the records, one below the other, as `plot_training` does.

    Returns:
        The axes of the first.

    Raises:
        RecordError: if the records hold no log of a run.
    """
    runs = histories(records)
    if not runs:
        raise RecordError("the records hold no log of a training run; those of a recipe's training stages do")
    figure = new_axes((6.4, 3.4 * len(runs))).figure
    figure.clear()
    panels = figure.subplots(len(runs), squeeze=False)[:, 0]
    for axes, (name, history) in zip(panels, runs.items(), strict=True):
        plot_training(history, axes)
        # Above the legend, which stands on the axes.
        axes.set_title(name, loc="left", pad=28, fontsize=10, fontweight="bold")
    figure.tight_layout()
    return panels[0]


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
