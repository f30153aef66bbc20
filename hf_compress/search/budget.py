"""`fit_budget`: a model that is at most so big and so slow, and loses as little as can be.

Level: outside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.hub.base import with_base_facts
from hf_compress.hub.card import create_card
from hf_compress.hub.config import CardInfo, is_hub_id
from hf_compress.measurement.api import measure
from hf_compress.measurement.record import load_records
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.progress import quiet_logs
from hf_compress.report.compare import compare
from hf_compress.report.tables import is_quality
from hf_compress.search.budget_report import write_budget_report
from hf_compress.search.candidate import Candidate, Cutter
from hf_compress.search.config import BudgetConfig
from hf_compress.search.fitting import Fitting
from hf_compress.search.forms import usable_forms
from hf_compress.search.limits import missed
from hf_compress.search.measured import drop
from hf_compress.search.store import claim

MARK = "budget.json"


@dataclasses.dataclass(frozen=True)
class BudgetResult:
    """What was found for a budget.

    Args:
        folder: of the model.
        candidate: what it is.
        found: "bytes", "parameters", "latency" and the metric of the saved model, measured.
        dense: the same of the model that it was made from.
        limits: what was allowed, absolute.
        missed: names of what is over its limit; empty where the budget is met.
    """

    folder: Path
    candidate: Candidate
    found: Mapping[str, float]
    dense: Mapping[str, float]
    limits: Mapping[str, float]
    missed: tuple[str, ...]


def fit_budget(
    model: str | Path, task: TaskConfig | Mapping[str, Any], output_dir: str | Path, **options: Any
) -> BudgetResult:
    """Find what to cut from a fine-tuned model and which form to give it so that it keeps to a budget; then make it.

    Some corners of what is possible are built and measured; the others are predicted from them. Of those that keep to
    the budget, those are tried that are expected to lose the least: what each cut and each form does alone to the
    predictions is measured, and added. The best few are trained briefly from the model as their teacher, the winner
    for the rest of the time. Choices are made on the validation split; the test split is measured at the end. An
    interrupted search goes on where it was.

    Args:
        model: folder or Hub id of a model that was trained for the task.
        task: the data, as in a recipe.
        output_dir: folder of the search; the model is in `output_dir`/model.
        **options: fields of `BudgetConfig`: max_bytes, max_latency, max_params, max_drop, minutes, forms and others.

    Returns:
        What was found, measured on the saved model. What is over its limit is named in `missed`.

    Raises:
        ConfigError: if options are wrong, or nothing is asked for.
        UnsupportedError: if no candidate keeps to the budget, with what comes closest and what binds.
        OutputExistsError: if the folder holds something else, or a search with other settings.
    """
    config = BudgetConfig.from_dict(options)
    task = task if isinstance(task, TaskConfig) else TaskConfig.from_dict(task)
    forms = usable_forms(config.forms)
    folder = Path(output_dir)
    claim(folder, MARK, {"model": str(model), "task": task.to_dict(), "budget": config.to_dict()})
    quiet_logs()
    steps = Fitting(folder, Cutter(str(model), task, config.samples, config.seed), config, forms)
    candidate, limits, outlooks = steps.choose()
    pictures = write_budget_report(folder, candidate, limits, outlooks)
    return _proved(steps, candidate, limits, pictures)


def _proved(
    steps: Fitting, candidate: Candidate, limits: Mapping[str, float], pictures: Sequence[Path]
) -> BudgetResult:
    """Measure the saved model beside the whole one, on the test split, and write records and card."""
    folders = {"dense": steps.folder / "dense", "fitted": steps.place(candidate)}
    if not (steps.folder / "records" / "fitted.json").is_file():
        _record(steps, candidate, folders, pictures)
    records = load_records(steps.folder / "records")
    size = {"batch_size": steps.config.batch_size}
    values = [
        {
            "bytes": record.get("bytes_on_disk").value,
            "parameters": record.get("parameters").value,
            "latency": record.get("latency", **size).value,
            **{m.name: m.value for m in record.measurements if is_quality(m.name)},
        }
        for record in records
    ]
    over = missed(steps.config, values[1], values[0])
    if steps.config.max_drop is not None and drop(values[1], values[0]) > steps.config.max_drop:
        over.append("max_drop")
    return BudgetResult(folders["fitted"], candidate, values[1], values[0], limits, tuple(over))


def _record(steps: Fitting, candidate: Candidate, folders: Mapping[str, Path], pictures: Sequence[Path]) -> None:
    own_model, own_task = steps.cutter.parent(candidate)

    def evaluate(model: Any) -> dict[str, float]:
        is_own = getattr(model.config, "vocab_size", None) == getattr(own_model.config, "vocab_size", None)
        return (own_task if is_own else steps.cutter.task).evaluate(model)

    chosen = {k: v for k, v in dataclasses.asdict(candidate).items() if v is not None}
    asked = {"fit_budget": {**steps.config.to_dict(defaults=False), "chosen": chosen}}
    compressed = {"prune": {"units": candidate.keep}, "distillation": {"logit_weight": 0.9}}
    records = measure(
        folders,
        evaluate=evaluate,
        dataset=steps.cutter.task.dataset,
        seed=steps.config.seed,
        methods={"fitted": {**asked, **compressed}},
        output_dir=steps.folder / "records",
        batch_sizes=(steps.config.batch_size,),
        length=steps.config.length,
    )
    compare(records, steps.folder)
    source = steps.cutter.model.config.name_or_path
    base = source if is_hub_id(source) else None
    info = CardInfo(steps.folder.resolve().name, base_model=base, pipeline_tag=steps.cutter.task.pipeline_tag)
    create_card(folders["fitted"], records, info=with_base_facts(info), pictures=pictures)
