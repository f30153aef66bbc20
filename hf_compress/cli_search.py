"""The verbs `sensitivity`, `sweep` and `fit` of `hf-compress`.

Level: outside. torch is imported by the call, never by `--help`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError
from hf_compress.search.config import BudgetConfig


def add_sweep(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb `sweep`."""
    parser = verb(verbs, "sweep", "search the options of a recipe by cross-validation, or go on with a search", _sweep)
    parser.add_argument("recipe", help="a YAML file, or the name of a built-in recipe")
    parser.add_argument(
        "space",
        help="a YAML file: option of a stage, such as stages.small.compression.distillation.temperature -> a list of "
        "choices, or {low: 1, high: 8, log: true}; or all fields of a SweepConfig",
    )
    parser.add_argument("--output-dir", required=True, help="folder of the search; several processes may share it")
    parser.add_argument("--trials", type=int, help="number of trials (default 20)")
    parser.add_argument("--folds", type=int, help="parts of the training data (default 3); 1: the validation split")
    parser.add_argument("--seed", type=int, help="of the sampler (default 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override an option of the recipe for all trials; repeatable",
    )  # fmt: skip


def _sweep(arguments: argparse.Namespace) -> None:
    from hf_compress.options import read_data_file
    from hf_compress.search.report import table
    from hf_compress.search.sweep import sweep

    options = read_data_file(arguments.space)
    if not isinstance(options, dict):
        raise ConfigError(f"{arguments.space} must hold a mapping of options, found {type(options).__name__}")
    if "space" not in options:
        options = {"space": options}
    given = {name: getattr(arguments, name) for name in ("trials", "folds", "seed")}
    options |= {name: value for name, value in given.items() if value is not None}
    result = sweep(arguments.recipe, output_dir=arguments.output_dir, overrides=arguments.overrides, **options)
    print(table(result))
    if result.chosen is not None:
        print(f"{result.chosen}: the best setting, trained on all training data and measured on the test split")


def add_sensitivity(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb `sensitivity`."""
    parser = verb(verbs, "sensitivity", "what pruning or quantizing each part alone does to the predictions", _measure)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("task", help="a YAML file with the data, as `task` of a recipe; labels are not used")
    parser.add_argument("--output-dir", required=True, help="folder for sensitivity.json, .md and .png")
    parser.add_argument("--samples", type=int, default=256, help="training samples looked at (default 256)")
    parser.add_argument("--kinds", nargs="+", help="weights, ffn, heads, layers, quantized (default all)")
    parser.add_argument("--levels", nargs="+", type=float, help="fractions that go (default 0.25 0.5 0.75 0.9)")
    parser.add_argument("--schemes", nargs="+", help="schemes of quantization (default int8 nf4)")


def _measure(arguments: argparse.Namespace) -> None:
    from hf_compress.imports import is_available
    from hf_compress.options import read_data_file
    from hf_compress.recipes.config import TaskConfig
    from hf_compress.recipes.task import training_batches
    from hf_compress.report.plots import save_plot
    from hf_compress.search.candidate import load_for_task
    from hf_compress.search.sensitivity import sensitivity
    from hf_compress.search.sensitivity_report import plot_sensitivity, sensitivity_table

    model, task = load_for_task(arguments.model, TaskConfig.from_dict(read_data_file(arguments.task)))
    folder = Path(arguments.output_dir)
    given = {name: getattr(arguments, name) for name in ("kinds", "levels", "schemes")}
    options = {name: value for name, value in given.items() if value is not None}
    batches = training_batches(task, arguments.samples)
    found = sensitivity(model, batches, output=folder / "sensitivity.json", **options)
    (folder / "sensitivity.md").write_text(sensitivity_table(found, "markdown") + "\n", encoding="utf-8")
    if is_available("matplotlib"):
        save_plot(plot_sensitivity(found), folder / "sensitivity.png")
    print(sensitivity_table(found))


def add_fit(verbs: Any, verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb `fit`."""
    parser = verb(verbs, "fit", "find and make a model that keeps to a budget, or go on with that", _fit)
    parser.add_argument("model", help="folder or Hub id of a model that was trained for the task")
    parser.add_argument("task", help="a YAML file with the data, as `task` of a recipe")
    parser.add_argument("--output-dir", required=True, help="folder of the search")
    kinds: dict[str, Any] = {"forms": str, "length": int}
    for field in dataclasses.fields(BudgetConfig):
        kind = kinds.get(field.name, int if isinstance(field.default, int) else float)
        many: dict[str, Any] = {"nargs": "+"} if field.name == "forms" else {}
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=kind, help=str(field.metadata["help"]), **many)


def _fit(arguments: argparse.Namespace) -> None:
    from hf_compress.options import read_data_file
    from hf_compress.search.budget import fit_budget

    names = [field.name for field in dataclasses.fields(BudgetConfig)]
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    result = fit_budget(arguments.model, read_data_file(arguments.task), arguments.output_dir, **options)
    for name, value in result.found.items():
        print(f"{name}: {value:,.6g} (whole model {result.dense[name]:,.6g})")
    print(f"{result.folder}: {result.candidate}; README.md is the card")
    if result.missed:
        raise ConfigError(f"over the limit in {', '.join(result.missed)}: give more minutes, or allow more there")
