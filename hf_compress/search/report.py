"""What a sweep tried and what came out: a table, a picture, the study in Optuna's own format.

Level: outside. matplotlib is imported inside functions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_compress.imports import is_available
from hf_compress.report.plots import BASELINE, INK, OTHER, new_axes, save_plot, style
from hf_compress.report.tables import draw_table, significant
from hf_compress.search.study import SweepResult, Trial


def write_report(folder: Path, result: SweepResult) -> None:
    """Write sweep.md and, if matplotlib is installed, sweep.png into the folder of a sweep."""
    pictures = []
    if is_available("matplotlib"):
        pictures = [save_plot(plot_sweep(result), folder / "sweep.png")]
    seconds = sum(t.seconds for t in result.trials)
    counts = {s: sum(t.state == s for t in result.trials) for s in ("complete", "pruned", "failed")}
    lines = [
        "# Sweep",
        f"{counts['complete']} trials were finished, {counts['pruned']} stopped early, {counts['failed']} failed; "
        f"{seconds / 60:.1f} minutes in all. Scores are means over folds and seeds of the training data, with their "
        "standard deviation; the test split was not used.",
        table(result, "markdown"),
        *(f"- trial {t.number} failed: {t.reason}" for t in result.trials if t.reason),
        *(f"![trials]({p.name})" for p in pictures),
    ]
    part = folder / "sweep.md.part"
    part.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    os.replace(part, folder / "sweep.md")


def table(result: SweepResult, style_name: str = "text") -> str:
    """Return one line a trial, the best ones first."""
    names = list(result.trials[0].params)
    header = ["trial", *(n.split(".", 1)[1] for n in names), *result.objectives, "folds", "seconds", ""]
    return draw_table([header, *(_line(t, names, result) for t in _ranked(result))], style_name)


def _line(trial: Trial, names: list[str], result: SweepResult) -> list[str]:
    values = [str(trial.params[n]) for n in names]
    scores = [_score(trial, metric) for metric in result.objectives]
    mark = "best" if trial in result.best else "" if trial.state == "complete" else trial.state
    return [str(trial.number), *values, *scores, str(len(trial.scores)), f"{trial.seconds:.0f}", mark]


def _score(trial: Trial, metric: str) -> str:
    if not trial.scores or metric not in trial.scores[0]:
        return "-"
    spread = trial.spread(metric)
    return significant(trial.mean(metric), 4) + (f" ± {significant(spread, 2)}" if spread is not None else "")


def _ranked(result: SweepResult) -> list[Trial]:
    (metric, direction) = next(iter(result.objectives.items()))
    sign = -1 if direction == "maximize" else 1

    def key(trial: Trial) -> tuple[Any, ...]:
        is_scored = bool(trial.scores) and metric in trial.scores[0]
        return (trial.state != "complete", not is_scored, sign * trial.mean(metric) if is_scored else 0, trial.number)

    return sorted(result.trials, key=key)


def plot_sweep(result: SweepResult, axes: Any = None) -> Any:
    """Draw the trials: one objective over their numbers, or the first against the second with the front of the best.

    Args:
        result: of `sweep`.
        axes: matplotlib axes to draw in; None makes new ones.

    Returns:
        The axes.
    """
    axes = axes if axes is not None else new_axes()
    style(axes)
    metrics = list(result.objectives)
    shown = [t for t in result.trials if t.scores and all(m in t.scores[0] for m in metrics)]
    if len(metrics) == 1:
        return _draw_progress(axes, result, shown, metrics[0])
    first, second = metrics[:2]
    others = [t for t in shown if t.state == "complete" and t not in result.best]
    axes.plot([t.mean(second) for t in others], [t.mean(first) for t in others], "o", color=OTHER, label="trials")
    front = sorted(result.best, key=lambda t: t.mean(second))
    axes.plot(
        [t.mean(second) for t in front],
        [t.mean(first) for t in front],
        "D-",
        color=BASELINE,
        linewidth=1,
        label="no other is better in both",
    )
    for trial in front:
        axes.annotate(str(trial.number), (trial.mean(second), trial.mean(first)), (5, 5), textcoords="offset points")
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.legend(loc="best")
    return axes


def _draw_progress(axes: Any, result: SweepResult, shown: list[Trial], metric: str) -> Any:
    better = max if result.objectives[metric] == "maximize" else min
    for state, mark, color in (("complete", "o", OTHER), ("pruned", "x", INK)):
        chosen = [t for t in shown if t.state == state]
        label = "finished" if state == "complete" else "stopped early"
        if chosen:
            errors = [t.spread(metric) or 0.0 for t in chosen]
            places, means = [t.number for t in chosen], [t.mean(metric) for t in chosen]
            axes.errorbar(places, means, errors, fmt=mark, color=color, elinewidth=0.8, capsize=2, label=label)
    complete = [t for t in shown if t.state == "complete"]
    so_far = [better(t.mean(metric) for t in complete[: i + 1]) for i in range(len(complete))]
    axes.step([t.number for t in complete], so_far, where="post", color=BASELINE, linewidth=1.2, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{metric}, mean and deviation over folds")
    axes.legend(loc="best")
    return axes
