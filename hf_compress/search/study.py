"""The trials of a sweep: chosen by Optuna, kept as one file each, so that nothing is lost when a process is killed.

Level: outside. What a trial tries depends on its number and on the trials that are finished, so a sweep that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError
from hf_compress.recipes.recipe import write_json
from hf_compress.search.config import LESS_IS_BETTER, SweepConfig

# Trials before the first guess, and before a median means something.
_STARTUP = 5


@dataclass(frozen=True)
class Trial:
    """One setting of the varied options and its scores.

    Args:
        number: from 0.
        params: option -> value.
        scores: of each fold and seed that was finished, metric -> value.
        state: "running", "complete", "pruned" or "failed".
        seconds: that it took.
        reason: why it failed.
    """

    number: int
    params: Mapping[str, Any]
    scores: tuple[Mapping[str, float], ...] = ()
    state: str = "running"
    seconds: float = 0.0
    reason: str = ""

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over folds and seeds."""
        return statistics.fmean(score[metric] for score in self.scores)

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation of a metric over folds and seeds; None where there is one only."""
        values = [score[metric] for score in self.scores]
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Args:
        trials: all of them, in order.
        objectives: metric -> direction.
        best: the best trial; with several objectives those that no other beats in all of them.
        chosen: folder of the best trial's run, measured on the test split; None with several objectives.
    """

    trials: tuple[Trial, ...]
    objectives: Mapping[str, str]
    best: tuple[Trial, ...]
    chosen: Path | None


def best_trials(trials: Sequence[Trial], objectives: Mapping[str, str]) -> tuple[Trial, ...]:
    """Return the complete trials that no other beats: better in one objective and not worse in any."""
    complete = [t for t in trials if t.state == "complete"]
    points = {t.number: [t.mean(m) * (1 if d == "maximize" else -1) for m, d in objectives.items()] for t in complete}
    front = [t for t in complete if not any(_beats(p, points[t.number]) for p in points.values())]
    # Of equals the first.
    return tuple(front[:1] if len(objectives) == 1 else front)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


class Trials:
    """The trials of one sweep in a folder.

    Args:
        folder: one JSON file a trial.
        config: of the sweep.
    """

    def __init__(self, folder: Path, config: SweepConfig) -> None:
        self.folder, self.config = folder, config

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> direction: those asked for, else the first metric that a trial was scored by."""
        if self.config.objectives:
            return dict(self.config.objectives)
        names = next((list(t.scores[0]) for t in self.read() if t.scores), ["score"])
        return {names[0]: "minimize" if names[0] in LESS_IS_BETTER else "maximize"}

    def read(self) -> list[Trial]:
        """Return all trials that were begun, in order."""
        return [_trial(p) for p in sorted(self.folder.glob("[0-9]*.json"))]

    def open(self) -> Iterator[Trial]:
        """Yield each trial that is to be done and that no other process does, until none is left."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.config.trials):
            path = self._path(number)
            if path.is_file() and _trial(path).state != "running":
                continue
            lock = FileLock(path.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                trial = _trial(path) if path.is_file() else self._begin(number)
                if trial is None:
                    return
                if trial.state == "running":
                    yield trial
            finally:
                lock.release()

    def save(self, trial: Trial) -> None:
        """Write a trial as it is now."""
        write_json(self._path(trial.number), dataclasses.asdict(trial))

    def is_hopeless(self, trial: Trial) -> bool:
        """Say whether the trial's mean so far is worse than the median of the others after as many folds."""
        import optuna

        if not self.config.prune or len(self.objectives) > 1:
            return False
        study = self.study()
        running = study.ask()
        (metric,) = self.objectives
        for fold in range(len(trial.scores)):
            running.report(statistics.fmean(s[metric] for s in trial.scores[: fold + 1]), fold)
        try:
            return running.should_prune()
        finally:
            study.tell(running, state=optuna.trial.TrialState.FAIL)

    def study(self) -> Any:
        """Return the finished trials as a study of Optuna, in memory."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=0)
        directions: list[Any] = list(self.objectives.values())
        study = optuna.create_study(directions=directions, pruner=pruner)
        kinds = distributions(self.config.space)
        for trial in self.read():
            if trial.state != "running":
                study.add_trial(self._frozen(trial, kinds))
        return study

    def _frozen(self, trial: Trial, kinds: Mapping[str, Any]) -> Any:
        import optuna

        states = optuna.trial.TrialState
        rungs: dict[int, float] = {}
        if len(self.objectives) == 1:
            (metric,) = self.objectives
            values = [s[metric] for s in trial.scores]
            rungs = {i: statistics.fmean(values[: i + 1]) for i in range(len(values))}
        return optuna.trial.create_trial(
            params={k: _stored(v) for k, v in trial.params.items()},
            distributions=dict(kinds),
            values=[trial.mean(m) for m in self.objectives] if trial.state == "complete" else None,
            intermediate_values=rungs,
            state={"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.state],
        )

    def _begin(self, number: int) -> Trial | None:
        """Choose what a new trial tries; None if a grid has no more."""
        import optuna

        kinds = distributions(self.config.space)
        if self.config.sampler == "grid":
            points = grid(self.config.space)
            if number >= len(points):
                return None
            trial = Trial(number, points[number])
        else:
            study = self.study()
            # A sampler that went on from trial to trial would forget where it was when the process ends.
            seed = 1_000_003 * self.config.seed + number
            study.sampler = (
                optuna.samplers.RandomSampler(seed)
                if self.config.sampler == "random"
                else optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
            )
            trial = Trial(number, {k: _value(v) for k, v in study.ask(dict(kinds)).params.items()})
        self.save(trial)
        return trial

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"


def distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options to vary as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, values in space.items():
        if not isinstance(values, Mapping):
            found[key] = CategoricalDistribution([_stored(v) for v in values])
            continue
        is_whole = all(isinstance(values[n], int) for n in ("low", "high", "step") if n in values)
        found[key] = IntDistribution(**values) if is_whole else FloatDistribution(**values)
    return found


def grid(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all combinations, the last option changing fastest."""
    columns = []
    for values in space.values():
        if isinstance(values, Mapping):
            count = int((values["high"] - values["low"]) / values["step"] + 1e-9) + 1
            columns.append([values["low"] + i * values["step"] for i in range(count)])
        else:
            columns.append(list(values))
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*columns)]


def _stored(value: Any) -> Any:
    """Return a choice as Optuna takes it: lists and mappings as text."""
    return json.dumps(value) if isinstance(value, (list, tuple, Mapping)) else value


def _value(stored: Any) -> Any:
    return json.loads(stored) if isinstance(stored, str) and stored[:1] in "[{" else stored


def _trial(path: Path) -> Trial:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Trial(**{**data, "scores": tuple(data["scores"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} holds no trial: {error}; remove it, and the trial is done again") from error
