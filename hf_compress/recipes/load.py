"""Recipes from files, built in or the user's, with overrides.

Level: outside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import RecipeError, did_you_mean
from hf_compress.options import read_data_file
from hf_compress.plain import read_yaml, shown, unplain
from hf_compress.recipes.config import RecipeConfig

_BUILTIN = Path(__file__).parent / "builtin"


def builtin_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(p.stem for p in _BUILTIN.glob("*.yaml"))


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RecipeConfig:
    """Read a recipe and apply overrides.

    Args:
        recipe: name of a built-in one, path of a YAML or JSON file, or plain data.
        overrides: "dotted.key=value" each; stages by name, e.g. "stages.teacher.arguments.max_steps=10".

    Raises:
        RecipeError: if there is no such recipe or an override leads nowhere.
        ConfigError: with every problem of the recipe.
    """
    if isinstance(recipe, Mapping):
        data = _copy(recipe)
    elif not isinstance(recipe, (str, os.PathLike)):
        raise RecipeError(f"expected a recipe's name, its file or its options, found {shown(recipe)}")
    elif str(recipe) in builtin_recipes():
        data = read_data_file(_BUILTIN / f"{recipe}.yaml")
    elif os.path.isfile(recipe):  # False, not an error, for what no file can be called
        data = read_data_file(recipe)
    else:
        known = builtin_recipes()
        raise RecipeError(
            f"there is no recipe {shown(str(recipe))}{did_you_mean(str(recipe), known)}: neither a file nor built in; "
            f"built in are: {', '.join(known)}"
        )
    for override in overrides if isinstance(data, dict) else ():
        _override(data, override)
    return RecipeConfig.from_dict(data)


def _copy(recipe: Mapping[str, Any]) -> Any:
    problem = unplain(recipe)
    if problem is not None:
        raise RecipeError(f"a recipe must be {problem}")
    return json.loads(json.dumps(recipe, default=dict))


def _override(data: Any, override: str) -> None:
    import yaml

    key, found, text = override.partition("=")
    if not found or not key:
        raise RecipeError(f"expected key=value, found {override!r}")
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {key} is no YAML: {shown(text)}") from error
    *parents, last = key.split(".")
    place = data
    for part in parents:
        place = _descend(place, part, key)
    if isinstance(place, list):
        raise RecipeError(f"{key} names a whole stage; name one of its options, e.g. {key}.source=...")
    place[last] = value


def _descend(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        names = [str(item.get("name")) if isinstance(item, dict) else "" for item in place]
        if part not in names:
            known = ", ".join(names)
            raise RecipeError(f"{key}: there is no stage {part!r}{did_you_mean(part, names)}; there are: {known}")
        return place[names.index(part)]
    if place.get(part) is None:
        place[part] = {}
    if not isinstance(place[part], (dict, list)):
        raise RecipeError(f"{key}: {part} is {place[part]!r} and holds no options")
    return place[part]
