"""`sweep`: options of a recipe, varied by Optuna and scored by cross-validation; the test split is seen at the end.

Level: outside.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError, DataError, HfCompressError, RecipeError, did_you_mean
from hf_compress.imports import require
from hf_compress.recipes.load import load_recipe
from hf_compress.recipes.progress import quiet_logs, say
from hf_compress.recipes.recipe import run_recipe
from hf_compress.search.config import COSTS, SweepConfig
from hf_compress.search.report import write_report
from hf_compress.search.store import StageStore, claim, stages_after
from hf_compress.search.study import SweepResult, Trial, Trials, best_trials

MARK = "sweep.json"


def sweep(
    recipe: str | Path | Mapping[str, Any],
    space: Mapping[str, Any],
    output_dir: str | Path,
    *,
    overrides: Sequence[str] = (),
    finish: bool = True,
    **options: Any,
) -> SweepResult:
    """Search the options of a recipe, or go on with a search that was interrupted.

    Each trial runs the recipe's stages on all but one part of the training data and is scored on that part, in turn.
    Stages that do not depend on what is varied are made once for each fold and seed. Several processes may work on the
    same folder. In the end the best setting is trained on all training data and measured on the test split, which
    nothing has seen before.

    Args:
        recipe: as in `run_recipe`.
        space: option of a stage -> choices or range, as in `SweepConfig`.
        output_dir: folder of the search.
        overrides: of the recipe, for all trials.
        finish: False leaves out the last run.
        **options: fields of `SweepConfig`: trials, folds, seeds, objectives, sampler, prune, seed.

    Raises:
        ConfigError, RecipeError: if the recipe, the space or an option is wrong; nothing is written then.
        DataError: if there are fewer rows than folds.
        MissingDependencyError: if Optuna or scikit-learn is missing.
        OutputExistsError: if the folder holds something else, or a search with other settings.
    """
    require("optuna", "sweeps")
    config = SweepConfig.from_dict({"space": space, **options})
    base = load_recipe(recipe, overrides)
    _check(recipe, overrides, config)
    quiet_logs()
    folder = Path(output_dir)
    # More trials of the same search may be asked for.
    searched = {name: value for name, value in config.to_dict().items() if name != "trials"}
    claim(folder, MARK, {"recipe": base.to_dict(), "sweep": searched})
    trials, scorer = Trials(folder / "trials", config), _Scorer(folder, recipe, overrides, config)
    for trial in trials.open():
        scorer.finish(trial, trials)
    done = trials.read()
    best = best_trials(done, trials.objectives)
    if not best:
        reason = next((t.reason for t in done if t.reason), "none is done")
        raise ConfigError(f"none of the {len(done)} trials could be scored: {reason}")
    result = SweepResult(tuple(done), trials.objectives, best, None)
    # The last process that works on this folder makes the end.
    if all(t.state != "running" for t in done):
        write_report(folder, result)
        if finish and len(trials.objectives) == 1:
            settings = [*overrides, *as_overrides(best[0].params)]
            result = dataclasses.replace(result, chosen=run_recipe(recipe, folder / "chosen", overrides=settings))
    return result


def as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a trial's options as `run_recipe` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in params.items()]


class _Scorer:
    """Runs and scores the folds of trials."""

    def __init__(self, folder: Path, recipe: Any, overrides: Sequence[str], config: SweepConfig) -> None:
        self.recipe, self.overrides, self.config = recipe, list(overrides), config
        self.store = StageStore(folder / "stages")
        self.varied = {key.split(".")[1] for key in config.space}

    def finish(self, trial: Trial, trials: Trials) -> None:
        """Score what is left of a trial, saving it after each fold."""
        rungs = [(fold, seed) for fold in range(self.config.folds) for seed in self.config.seeds]
        shown = ", ".join(f"{key.split('.', 1)[1]} {value}" for key, value in trial.params.items())
        say(f"[{trial.number + 1}/{self.config.trials}] {shown}")
        for fold, seed in rungs[len(trial.scores) :]:
            started = time.monotonic()
            try:
                score = self._score(trial, fold, seed)
            except HfCompressError as error:
                trials.save(dataclasses.replace(trial, state="failed", reason=str(error)))
                say(f"  failed: {error}")
                return
            seconds = round(trial.seconds + time.monotonic() - started, 1)
            trial = dataclasses.replace(trial, scores=(*trial.scores, score), seconds=seconds)
            trials.save(trial)
            say(f"  fold {fold + 1}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in score.items()))
            if len(trial.scores) < len(rungs) and trials.is_hopeless(trial):
                trials.save(dataclasses.replace(trial, state="pruned"))
                say("  stopped: below the median of the others")
                return
        trials.save(dataclasses.replace(trial, state="complete"))

    def _score(self, trial: Trial, fold: int, seed: int) -> dict[str, float]:
        from hf_compress.measurement.load import load_measured

        where = [f"task.fold=[{fold}, {self.config.folds}]"] if self.config.folds > 1 else []
        settings = [*self.overrides, *as_overrides(trial.params), *where, f"seed={seed}"]
        config = load_recipe(self.recipe, settings)
        folder = self.store.make(config)
        model = load_measured(folder)
        # Never the test split: with folds there is none, without them this is the validation split.
        found = {name: float(value) for name, value in self.store.task(config).evaluate(model, "validation").items()}
        found |= _costs(folder, model, [name for name in self.config.objectives if name in COSTS])
        lacking = [name for name in self.config.objectives if name not in found]
        if lacking:
            raise ConfigError(
                f"objectives: there is no {lacking[0]!r}{did_you_mean(lacking[0], found)}; there are "
                f"{', '.join(found)}, and of the costs {', '.join(COSTS)}"
            )
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise DataError(f"{wrong[0]} is {found[wrong[0]]}: training diverged")
        self.store.forget(config, stages_after(config, self.varied))
        return found


def _costs(folder: Path, model: Any, names: Sequence[str]) -> dict[str, float]:
    from hf_compress.measurement.inputs import dummy_inputs
    from hf_compress.measurement.size import measure_size
    from hf_compress.measurement.speed import measure_latency

    found = {m.name: float(m.value) for m in measure_size(folder) if m.name in names}
    if "latency" in names:
        times = measure_latency({"it": model}, dummy_inputs, batch_sizes=(1,))["it"]
        found["latency"] = next(m.value for m in times if m.name == "latency")
    return found


def _check(recipe: Any, overrides: Sequence[str], config: SweepConfig) -> None:
    """Try the first and the last choice of every option, so that a wrong one is found before anything is trained."""
    from hf_compress.recipes.stages import check_stages

    for key, values in config.space.items():
        ends = [values["low"], values["high"]] if isinstance(values, Mapping) else values
        for value in ends:
            try:
                check_stages(load_recipe(recipe, [*overrides, *as_overrides({key: value})]))
            except (ConfigError, RecipeError) as error:
                raise ConfigError(f"space: {key} cannot be {value!r}: {error}") from error
