"""What leaves a Trainer: the finished model, its card and the push.

Level: glue.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn

from hf_compress.architecture.saved import saved_weights
from hf_compress.errors import SparsityError
from hf_compress.imports import is_available
from hf_compress.measurement.adapter import describe_adapter, is_adapter, whole_model
from hf_compress.measurement.environment import environment
from hf_compress.measurement.load import read_config
from hf_compress.measurement.record import Measurement, Record
from hf_compress.measurement.size import count_parameters, measure_size
from hf_compress.pruning.checkpoint import save_pruning_state
from hf_compress.pruning.pruner import Pruner
from hf_compress.pruning.stores import check_zeros
from hf_compress.training.setup import refuse_card

logger = logging.getLogger(__name__)

# What the Trainer adds to evaluation metrics that says nothing about quality.
_SPEED_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def check_saved_zeros(pruner: Pruner, model: nn.Module, folder: Path, is_here: bool = True) -> None:
    """Make sure that the weights saved in `folder` are zero where the masks of `pruner` are.

    Args:
        pruner: with its masks; where parameters are sharded, all processes must call this.
        model: whose weights they are.
        folder: where they were saved.
        is_here: whether this process can read the folder.

    Raises:
        SparsityError: if they are not, or masked weights are missing in the file.
    """
    # Where parameters are sharded, all processes put the masks together.
    masks = pruner.masks
    if not is_here:
        return
    if hasattr(model, "merge_and_unload"):
        save_pruning_state(pruner, folder)
        logger.warning(
            "%s holds the adapter alone, and its base has been pruned: save_compressed() writes both merged; the "
            "masks are beside the adapter",
            folder,
        )
        return
    saved = saved_weights(model, folder, set(masks))
    lost = sorted(masks.keys() - saved.keys())
    if lost:
        raise SparsityError(
            f"{folder.name} lacks {len(lost)} masked weights of {type(model).__name__}, e.g. {lost[0]}"
        )
    check_zeros(masks, saved)


def start_record(trainer: Any) -> Record:
    """Count the model that a run starts from."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "merge_and_unload") else model
    # Codes of several weights are packed into one stored number, which says nothing of how many there are.
    counts = {} if getattr(model, "is_quantized", False) else count_parameters(model)
    measurements = [Measurement(name, value, "parameters") for name, value in counts.items()]
    method = {"architecture": type(model).__name__}
    return Record("start", "baseline", tuple(measurements), environment(), seed=trainer.args.seed, method=method)


def run_records(trainer: Any, folder: Path) -> list[Record]:
    """Return the records of a run: the model it started from, and what it saved in `folder`.

    Quality is in them where the Trainer evaluated those very weights: before the first step (`eval_on_start`) and
    after the last one.
    """
    before, after = _evaluation(trainer, 0), _evaluation(trainer, trainer.state.global_step)
    dataset: dict[str, Any] = {}
    if after:
        rows = trainer.eval_dataset
        dataset = {"id": _dataset_id(rows), "split": str(getattr(rows, "split", None) or "evaluation")}
        dataset["samples"] = len(rows)
    start = trainer._start_record
    if after:
        start = dataclasses.replace(
            start, measurements=(*start.measurements, *before), dataset=dataset if before else {}
        )
    measurements = (*measure_size(folder), *after)
    end = Record(
        "result", "result", measurements, environment(), dataset, trainer.args.seed, method=_method(trainer, folder)
    )
    return [start, end]


def _evaluation(trainer: Any, step: int) -> list[Measurement]:
    for entry in reversed(trainer.state.log_history):
        if entry.get("step") == step and isinstance(trainer.eval_dataset, Sized) and "eval_loss" in entry:
            plain = {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
            return [
                Measurement(name, float(value), "nats" if name == "loss" else "fraction" if 0 <= value <= 1 else "")
                for name, value in plain.items()
                if name not in _SPEED_METRICS and isinstance(value, (int, float))
            ]
    return []


def _dataset_id(dataset: Any) -> str:
    return getattr(getattr(dataset, "info", None), "dataset_name", None) or "the eval_dataset of the Trainer"


def _method(trainer: Any, folder: Path) -> dict[str, Any]:
    args, whole = trainer.args, whole_model(folder)
    names = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16")
    training = {name: getattr(args, name) for name in names} | {"steps": trainer.state.global_step}
    compression = {k: v for k, v in trainer.compression.to_dict().items() if v is not None}
    # The saved model is the 16- or 32-bit one; save_compressed writes the quantized copy.
    compression.pop("quantization", None)
    found = {"architecture": read_config(whole)["architectures"][0], **compression, "training": training}
    if is_adapter(folder):
        found["adapter"] = describe_adapter(folder)
    return found


def write_card(trainer: Any, *args: Any, **kwargs: Any) -> None:
    """Write README.md into the output folder, from the start record and what is saved there."""
    from hf_compress.hub.card import create_card

    refuse_card(trainer.accelerator.unwrap_model(trainer.model))
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    info = _card_info(trainer, *args, **kwargs)
    create_card(folder, run_records(trainer, folder), info=info, pictures=_draw(trainer, folder))


def _draw(trainer: Any, folder: Path) -> list[Path]:
    """Draw the run of a pruner into `folder`, if there is one and matplotlib is installed."""
    if trainer.pruner is None or not trainer.pruner.pruned or not is_available("matplotlib"):
        return []
    from hf_compress.report.plots import save_plot
    from hf_compress.report.training_plots import plot_sparsities, plot_training

    drawn = [save_plot(plot_sparsities(trainer.pruner.sparsities), folder / "sparsity.png")]
    if any("loss" in e for e in trainer.state.log_history):
        drawn.append(save_plot(plot_training(trainer.state.log_history), folder / "training.png"))
    return drawn


def _card_info(
    trainer: Any,
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    **hub: Any,
) -> Any:
    """Translate the arguments of `Trainer.create_model_card`."""
    from hf_compress.hub.base import with_base_facts
    from hf_compress.hub.config import CardInfo

    base = finetuned_from or getattr(getattr(trainer.model, "config", None), "name_or_path", None)
    datasets = hub.get("dataset_tags") or hub.get("dataset") or ()
    info = CardInfo(
        model_name=model_name or Path(trainer.args.output_dir).name,
        base_model=base if base and not Path(base).exists() else None,
        license=license,
        language=(language,) if isinstance(language, str) else tuple(language or ()),
        datasets=(datasets,) if isinstance(datasets, str) else tuple(datasets),
        tags=(tags,) if isinstance(tags, str) else tuple(tags or ()),
    )
    return with_base_facts(info, trainer.args.hub_token)


def push_trainer(trainer: Any, options: Mapping[str, Any], blocking: bool, **card: Any) -> Any:
    """Save, write the card and upload the output folder in one commit; see `CompressionMixin.push_to_hub`."""
    from hf_compress.hub.push import push

    refuse_card(trainer.accelerator.unwrap_model(trainer.model))
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    args = trainer.args
    repo_id = trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name
    trainer.create_model_card(**{"model_name": repo_id.split("/")[-1], **card})
    options = {
        "commit_message": options["commit_message"],
        "token": options["token"] or args.hub_token,
        "revision": options["revision"] or args.hub_revision,
        "private": args.hub_private_repo if options["private"] is None else options["private"],
    }
    if blocking:
        return push(args.output_dir, repo_id, **options)
    executor = ThreadPoolExecutor(max_workers=1)
    future = executor.submit(push, args.output_dir, repo_id, **options)
    executor.shutdown(wait=False)
    return future
