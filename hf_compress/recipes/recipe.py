"""`run_recipe`: one YAML file in, models, records, pictures and a card out; a rerun goes on where the last stopped.

Level: outside. Everything that a recipe does is one public call of another module.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import HfCompressError, OutputExistsError, RecipeError
from hf_compress.options import read_data_file
from hf_compress.output import full_disk_explained
from hf_compress.recipes.config import RecipeConfig
from hf_compress.recipes.load import load_recipe

_MARK = "recipe.json"


def run_recipe(
    recipe: str | Path | Mapping[str, Any],
    output_dir: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
) -> Path:
    """Run a recipe, or what is left of it.

    Args:
        recipe: name of a built-in one, path of a YAML or JSON file, or plain data.
        output_dir: folder of the run; runs/NAME if not given. A run of the same recipe there is continued.
        overrides: "dotted.key=value" each.

    Returns:
        The folder: one model folder a stage, records/, pictures, README.md (the card), comparison.md.

    Raises:
        RecipeError, ConfigError: if the recipe cannot run; nothing is written then.
        OutputExistsError: if the folder holds something else.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "a recipe runs in one process, found WORLD_SIZE > 1; train on several with a script of "
            "scripts/train_*.py, one for each task"
        )
    config = load_recipe(recipe, overrides)
    from hf_compress.recipes.progress import quiet_logs
    from hf_compress.recipes.stages import check_stages

    check_stages(config)
    quiet_logs()
    run = Path(output_dir) if output_dir is not None else Path("runs") / config.name
    _claim(run, config)
    Run(config, run, command_of(recipe, config, overrides)).finish()
    return run


def command_of(recipe: str | Path | Mapping[str, Any], config: RecipeConfig, overrides: Sequence[str]) -> str:
    """Return the command of a run as its records and its card show it: of absolute paths only the last part."""
    name = config.name if isinstance(recipe, Mapping) else Path(recipe).name
    return " ".join(["hf-compress run", name, *(f"--set {_portable(o)}" for o in overrides)])


def _portable(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}={Path(value).name}" if Path(value).is_absolute() else override


def _claim(run: Path, config: RecipeConfig) -> None:
    """Mark `run` as the folder of this recipe, or find the mark there."""
    # Where it is pushed to changes nothing of what is made, so a finished run can still be pushed.
    wanted = {name: value for name, value in config.to_dict().items() if name != "push_to"}
    # What the last step takes can be put right as long as that is not done.
    free = set() if (run / "state" / "report.json").is_file() else {"measure", "card"}
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / _MARK, wanted)
        return
    if not run.is_dir() or not (run / _MARK).is_file():
        raise OutputExistsError(f"{run} holds something that is no run of a recipe; choose another --output-dir")
    changed = _differences(read_data_file(run / _MARK), json.loads(json.dumps(wanted)))
    if {place.partition(".")[0] for place in changed} - free:
        raise OutputExistsError(
            f"{run} holds a run with other options ({', '.join(sorted(changed))}); remove it or choose another "
            "--output-dir"
        )
    if changed:
        write_json(run / _MARK, wanted)


def _differences(one: Any, other: Any, place: str = "") -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return set().union(*(_differences(one.get(k), other.get(k), f"{place}.{k}".lstrip(".")) for k in keys))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = enumerate(zip(one, other, strict=True))
        return set().union(*(_differences(a, b, f"{place}.{i}") for i, (a, b) in parts))
    return set() if one == other else {place}


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def make_stage(
    recipe: RecipeConfig,
    stage: Any,
    load_task: Callable[[], Any],
    target: Path,
    work: Path,
    resolve: Callable[[str], str],
) -> Mapping[str, Any]:
    """Make the model folder of one stage, whole or not at all; training goes on where it was interrupted.

    Args:
        recipe: the stage is of.
        stage: its options.
        load_task: returns data, collator, processor.
        target: folder to make; what a killed run left there is removed.
        work: folder for checkpoints, gone at the end.
        resolve: turns the name of an earlier stage into its folder and leaves ids and paths as they are.

    Returns:
        What was done, for the record.

    Raises:
        RecipeError: if something cannot be read or written.
        DiskFullError: if there is no room.
    """
    from hf_compress.recipes.stages import STAGES, StageContext

    part = work.with_name(f"{work.name}.part")
    for leftover in (target, part):
        shutil.rmtree(leftover, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    way_out = f"stage {stage.name!r} is not complete; free some space and run again, which goes on there"
    try:
        with full_disk_explained(way_out):
            method = STAGES.get(stage.kind)(StageContext(recipe, stage, load_task(), part, work, resolve))
    except HfCompressError:
        raise
    except OSError as error:  # the disk, or an id or folder that transformers cannot load
        raise RecipeError(f"stage {stage.name!r} with source {stage.source!r}: {error}") from error
    os.replace(part, target)
    shutil.rmtree(work, ignore_errors=True)
    return method


class Run:
    """One run of a recipe in its folder; what is complete has a mark in state/ and is not done again.

    Args:
        config: the recipe.
        folder: of the run.
        command: that repeats it.
    """

    def __init__(self, config: RecipeConfig, folder: Path, command: str) -> None:
        self.config, self.folder, self.command = config, folder, command
        self._task: Any = None

    def finish(self) -> None:
        """Do everything that is not done yet, and print the comparison."""
        from hf_compress.recipes.progress import say
        from hf_compress.report.compare import compare

        steps = [*((s.name, lambda s=s: self._stage(s)) for s in self.config.stages), ("report", self._report)]
        for number, (name, step) in enumerate(steps, 1):
            mark = self.folder / "state" / f"{name}.json"
            if mark.is_file():
                say(f"[{number}/{len(steps)}] {name}: done before")
                continue
            say(f"[{number}/{len(steps)}] {name}")
            started = time.monotonic()
            method = step()
            write_json(mark, {"seconds": round(time.monotonic() - started, 1), "method": method})
            say(f"[{number}/{len(steps)}] {name}: {time.monotonic() - started:.1f} s")
        print(compare(self.folder / "records"))
        if self.config.push_to is not None:
            self._push()

    @property
    def task(self) -> Any:
        """The task, loaded when a step first needs it."""
        if self._task is None:
            from hf_compress.recipes.tasks import build_task

            first = self.config.stages[0].source
            self._task = build_task(self.config.task, first)
        return self._task

    def resolve(self, name: str) -> str:
        """Turn the name of a stage into its folder; leave ids and paths as they are."""
        is_stage = any(s.name == name for s in self.config.stages)
        return str(self.folder / name) if is_stage else name

    def _stage(self, stage: Any) -> Mapping[str, Any]:
        target, work = self.folder / stage.name, self.folder / "work" / stage.name
        return make_stage(self.config, stage, lambda: self.task, target, work, self.resolve)

    def _methods(self) -> dict[str, dict[str, Any]]:
        """Return what was done to each model, all stages before it included."""
        own, methods = {}, {}
        for stage in self.config.stages:
            mark = json.loads((self.folder / "state" / f"{stage.name}.json").read_text(encoding="utf-8"))
            own[stage.name] = {k: v for k, v in mark["method"].items() if v is not None and k != "validation"}
        for stage in self.config.stages:
            chain, name = [], stage.name
            while name in own:
                chain.append(name)
                name = next(s.source for s in self.config.stages if s.name == name) or ""
            methods[stage.name] = {n: own[n] for n in reversed(chain)}
        return methods

    def _report(self) -> Mapping[str, Any]:
        from hf_compress.measurement.api import measure
        from hf_compress.report.compare import compare

        settings = self.config.measure
        names = settings.models or tuple(s.name for s in self.config.stages)
        methods = self._methods()
        records = measure(
            {name: self.folder / name for name in names},
            evaluate=self.task.evaluate,
            dataset=self.task.dataset,
            seed=self.config.seed,
            command=self.command,
            methods={name: methods[name] for name in names},
            output_dir=self.folder / "records",
            # One model alone is compared with nothing.
            baseline=settings.baseline or (names[0] if len(names) > 1 else None),
            result=settings.result or names[-1],
            batch_sizes=settings.batch_sizes,
            length=settings.length,
        )
        compare(records, self.folder)
        self._card(records)
        return {"models": list(names)}

    def _card(self, records: Sequence[Any]) -> None:
        from hf_compress.hub.base import with_base_facts
        from hf_compress.hub.card import create_card
        from hf_compress.hub.config import CardInfo

        card = self.config.card
        info = CardInfo(
            model_name=self.config.name,
            base_model=card.base_model,
            license=card.license,
            language=card.language,
            datasets=card.datasets,
            pipeline_tag=self.task.pipeline_tag,
            tags=card.tags,
            limits=card.limits,
            recipe=self.config.to_yaml(defaults=False),
        )
        info = with_base_facts(info)
        pictures = sorted(self.folder.glob("*.png"), reverse=True)
        result = next(r.model for r in records if r.role == "result")
        for folder in (self.folder, self.folder / result):
            create_card(folder, records, info=info, pictures=pictures)

    def _push(self) -> None:
        from hf_compress.hub.push import push
        from hf_compress.recipes.progress import say

        names = self.config.measure.models or tuple(s.name for s in self.config.stages)
        result = self.folder / (self.config.measure.result or names[-1])
        say(push(result, str(self.config.push_to)).to_text())
