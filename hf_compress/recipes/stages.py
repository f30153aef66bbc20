"""The stages of a recipe: each makes one model folder with the public calls of this package.

Level: outside. A new kind of stage is one decorated function here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from hf_compress.errors import ConfigError, RecipeError, did_you_mean
from hf_compress.recipes import untrained  # noqa: F401  (registers its stages)
from hf_compress.recipes.config import RecipeConfig, StageConfig
from hf_compress.recipes.stage import STAGES, StageContext, stage_kind
from hf_compress.report.training_plots import curves

# Training arguments that change nothing about the result.
_BOOKKEEPING = (
    "report_to", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "disable_tqdm", "use_cpu",
)  # fmt: skip


def check_stages(recipe: RecipeConfig) -> None:
    """Make sure that every stage can run, before any does.

    Raises:
        RecipeError: with all problems.
    """
    from hf_compress.quantization.export import check_form

    problems, earlier = [], []
    for stage in recipe.stages:
        try:
            misplaced = stage.given() - STAGES.get(stage.kind).options
            if misplaced:
                problems.append(f"stage {stage.name!r}: {stage.kind} does not take {', '.join(sorted(misplaced))}")
            if stage.kind == "train":
                _check_training(stage)
            if stage.kind == "oneshot":
                _check_oneshot(stage)
            if stage.kind == "export" and stage.export is not None:
                check_form(stage.export.format, stage.export.quantization)
            if stage.kind == "quantize" and stage.quantization is not None:
                _check_quantization(stage.quantization)
        except (ConfigError, RecipeError) as error:
            problems.append(f"stage {stage.name!r}: {error}")
        later = [s.name for s in recipe.stages if s.name not in earlier]
        problems += [
            f"stage {stage.name!r} refers to {name!r}, which comes later"
            for name in (stage.source, stage.teacher)
            if name in later
        ]
        earlier.append(stage.name)
    problems += _report_problems(recipe)
    if problems:
        raise RecipeError("; ".join(problems))


def _report_problems(recipe: RecipeConfig) -> list[str]:
    """Return what is wrong with the options of the last step, which comes after hours of training."""
    from hf_compress.hub.config import CardInfo
    from hf_compress.measurement.config import MeasureSettings

    found = []
    timed = {name: getattr(recipe.measure, name) for name in ("baseline", "result", "batch_sizes", "length")}
    told = {name: getattr(recipe.card, name) for name in ("base_model", "license", "language", "datasets", "tags")}
    for part, make in (
        ("measure", lambda: MeasureSettings(**timed)),
        ("card", lambda: CardInfo(model_name=recipe.name, **told)),
    ):
        try:
            make()
        except ConfigError as error:
            found.append(f"{part}: {error}")
    return found


def _check_oneshot(stage: StageConfig) -> None:
    from hf_compress.pruning.oneshot.api import check_config

    if stage.oneshot is None:
        raise RecipeError("oneshot is missing: say what goes, e.g. oneshot: {sparsity: 0.5}")
    if stage.oneshot.layout == "per_layer":
        raise RecipeError("layout per_layer makes a model that only its own file loads; use it from Python")
    check_config(stage.oneshot)


def _check_quantization(config: Any) -> None:
    from hf_compress.quantization.schemes import scheme_of

    scheme_of(config)
    if config.aware:
        raise RecipeError("aware belongs into compression.quantization of a stage of kind 'train' before this one")


def _check_training(stage: StageConfig) -> None:
    import dataclasses

    from transformers import TrainingArguments

    from hf_compress.pruning.pruner import Pruner

    known = [f.name for f in dataclasses.fields(TrainingArguments)]
    for name in stage.arguments:
        if name not in known or name in ("output_dir", "push_to_hub", "resume_from_checkpoint"):
            raise RecipeError(f"arguments: {name!r} is no training argument to set{did_you_mean(name, known)}")
    try:
        TrainingArguments(output_dir="unused", **{**fast_arguments(), **stage.arguments})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"arguments: {error}") from error
    compression = stage.compression
    distils = compression is not None and compression.distillation is not None
    if distils != (stage.teacher is not None):
        raise RecipeError("compression.distillation and teacher go together: give both or none")
    if compression is not None and compression.quantization is not None and not compression.quantization.aware:
        raise RecipeError("compression.quantization without aware belongs into a stage 'quantize' after this one")
    if compression is not None and compression.pruning is not None:
        # Looks up structure, criterion and schedule.
        Pruner(compression.pruning)


@stage_kind("train", "config", "teacher", "compression", "arguments")
def train(context: StageContext) -> Mapping[str, Any]:
    """Train, distil or prune with `CompressionTrainer`; an interrupted stage continues at its last checkpoint."""
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from hf_compress.recipes.progress import ProgressLines, say
    from hf_compress.training.checkpoint import last_complete_checkpoint
    from hf_compress.training.publish import check_saved_zeros
    from hf_compress.training.restore import RestoreWeights

    stage, task = context.stage, context.task
    set_seed(context.recipe.seed)
    options = {**fast_arguments(), **task.arguments, **stage.arguments}
    trainer: Any = task.trainer_class(
        initial_model(context),
        task.arguments_class(output_dir=str(context.work), seed=context.recipe.seed, **options),
        **task.for_trainer(),
        compression=stage.compression,
        teacher=None if stage.teacher is None else context.resolve(stage.teacher),
        unlabeled_dataset=None if stage.teacher is None else task.unlabeled,
    )
    if stage.compression is None:
        # With compression the Trainer adds it itself.
        trainer.add_callback(RestoreWeights())
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLines(stage.name))
    whole = last_complete_checkpoint(context.work, files=trainer.checkpoint_files)
    trainer.train(resume_from_checkpoint=str(whole or "") or None)
    trainer.model.save_pretrained(context.output)
    task.processing_class.save_pretrained(context.output)
    if trainer.pruner is not None:
        check_saved_zeros(trainer.pruner, trainer.model, context.output)
    validation = task.evaluate(trainer.model, "validation") if "validation" in task.rows else {}
    say(f"  {stage.name} on the validation split: " + ", ".join(f"{k} {v:.4f}" for k, v in validation.items()))
    return {**_training_method(stage, options, trainer), "validation": validation}


def initial_model(context: StageContext) -> Any:
    """Return the model that a training stage starts from: new from a config, or loaded."""
    import transformers

    from hf_compress.recipes.task import model_for

    stage, task = context.stage, context.task
    auto = getattr(transformers, task.auto_class)
    if stage.config is not None:
        config = transformers.AutoConfig.for_model(**stage.config, **task.head)
        return auto.from_config(config)
    source = context.resolve(str(stage.source))
    if source != stage.source:  # an earlier stage has the labels already
        return auto.from_pretrained(source, trust_remote_code=False)
    return model_for(task, source)


def fast_arguments() -> dict[str, Any]:
    """Return the training arguments that are fastest on this machine without changing what is learnt."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "use_cpu": not on_gpu,
        "bf16": torch.cuda.is_bf16_supported() if on_gpu else _cpu_multiplies_bf16(),
        "optim": "adamw_torch_fused",
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 2,
        "logging_steps": 50,
        "disable_tqdm": not sys.stderr.isatty(),
    }


def _cpu_multiplies_bf16() -> bool:
    """Say whether the processor has instructions for bf16 products; elsewhere bf16 is emulated and slow."""
    import torch

    # torch has no public question for it, and older versions ask for fewer instruction sets.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def _training_method(stage: StageConfig, options: Mapping[str, Any], trainer: Any) -> Mapping[str, Any]:
    shown = {k: v for k, v in options.items() if k not in _BOOKKEEPING}
    history = curves(trainer.state.log_history)
    compression = None if stage.compression is None else _given(stage.compression.to_dict())
    return {"training": {**shown, "steps": trainer.state.global_step}, "compression": compression, "history": history}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
