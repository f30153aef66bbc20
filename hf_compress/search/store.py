"""The stages of many recipes on the same data: equal ones are made once.

Level: outside.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_compress.errors import OutputExistsError
from hf_compress.options import read_data_file
from hf_compress.recipes.config import RecipeConfig, StageConfig
from hf_compress.recipes.recipe import make_stage, write_json


class StageStore:
    """Model folders by what made them; several processes may share one.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tasks: dict[str, Any] = {}

    def task(self, config: RecipeConfig) -> Any:
        """Return the task of a recipe, loaded once."""
        from hf_compress.recipes.tasks import build_task

        source = config.stages[0].source
        key = _digest([config.task.to_dict(), source])
        if key not in self._tasks:
            self._tasks[key] = build_task(config.task, source)
        return self._tasks[key]

    def make(self, config: RecipeConfig) -> Path:
        """Make all stages of a recipe that are not there yet; returns the folder of its result."""
        from filelock import FileLock

        keys = self.keys(config)
        for stage in config.stages:
            target = self.folder / keys[stage.name]
            mark = target.with_name(f"{target.name}.json")
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not mark.is_file():
                    work, task = self.folder / "work" / target.name, functools.partial(self.task, config)
                    method = make_stage(config, stage, task, target, work, self._resolver(keys))
                    write_json(mark, {"stage": stage.name, "method": method})
        return self.folder / keys[config.measure.result or config.stages[-1].name]

    def forget(self, config: RecipeConfig, names: Iterable[str]) -> None:
        """Remove the folders of some stages of a recipe."""
        keys = self.keys(config)
        for name in names:
            target = self.folder / keys[name]
            # The mark first: a folder without one is made again, a mark without a folder would be believed.
            target.with_name(f"{target.name}.json").unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            Path(f"{target}.lock").unlink(missing_ok=True)

    def keys(self, config: RecipeConfig) -> dict[str, str]:
        """Return for each stage the name of its folder, which everything that its result depends on goes into."""
        found: dict[str, str] = {}
        for stage in config.stages:
            found[stage.name] = f"{stage.name}-{_digest(_origin(config, stage, found))}"
        return found

    def _resolver(self, keys: Mapping[str, str]) -> Any:
        return lambda name: str(self.folder / keys[name]) if name in keys else name


def stages_after(config: RecipeConfig, changed: Iterable[str]) -> list[str]:
    """Return the names of the `changed` stages and of all that are made from them."""
    found = set(changed)
    for stage in config.stages:
        if {stage.source, stage.teacher} & found:
            found.add(stage.name)
    return [s.name for s in config.stages if s.name in found]


def _origin(config: RecipeConfig, stage: StageConfig, keys: Mapping[str, str]) -> list[Any]:
    named = {n: keys.get(v, v) for n in ("source", "teacher") if (v := getattr(stage, n)) is not None}
    plain = {**dataclasses.replace(stage, name="x").to_dict(), **named}
    return [config.task.to_dict(), config.seed, plain]


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(folder: Path, mark: str, wanted: Mapping[str, Any]) -> None:
    """Mark a folder as that of one search, or find the mark there.

    Args:
        folder: of the search; it may exist and be empty.
        mark: name of the file that says whose it is.
        wanted: the settings of the search.

    Raises:
        OutputExistsError: if the folder holds something else, or a search with other settings.
    """
    wanted = json.loads(json.dumps(wanted))
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / mark, wanted)
    elif not (folder / mark).is_file() or read_data_file(folder / mark) != wanted:
        raise OutputExistsError(
            f"{folder} holds something else, or a search with other settings; choose another place"
        )
