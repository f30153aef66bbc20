"""The stages of a recipe: each makes one model folder with the public calls of this package.

Level: outside. A new kind of stage is one decorated function here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError, RecipeError, did_you_mean
from hf_compress.recipes.config import RecipeConfig, StageConfig
from hf_compress.recipes.tasks import Task
from hf_compress.registry import Registry


@dataclass
class StageContext:
    """What a stage may use.

    Args:
        recipe: the whole recipe.
        stage: this stage.
        task: data, collator, processor.
        output: folder to make; it does not exist yet.
        work: folder for checkpoints, kept when the run is interrupted.
        resolve: turns the name of an earlier stage into its folder and leaves ids and paths as they are.
    """

    recipe: RecipeConfig
    stage: StageConfig
    task: Task
    output: Path
    work: Path
    resolve: Callable[[str], str]
    method: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: the function that runs it and the options of `StageConfig` that it takes."""

    run: Callable[[StageContext], Mapping[str, Any]]
    options: frozenset[str]

    def __call__(self, context: StageContext) -> Mapping[str, Any]:
        """Run the stage; returns what was done to the model, for its record."""
        return self.run(context)


STAGES: Registry[StageKind] = Registry("kind of stage")

# Of a stage that measures units: samples by default, and of a batch.
_SAMPLES, _BATCH = 1024, 32
# Training arguments that change nothing about the result.
_BOOKKEEPING = (
    "report_to", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "disable_tqdm", "use_cpu",
)  # fmt: skip


def stage_kind(name: str, *options: str) -> Callable[[Callable[[StageContext], Mapping[str, Any]]], StageKind]:
    """Register a function as a kind of stage that takes the named options."""

    def add(run: Callable[[StageContext], Mapping[str, Any]]) -> StageKind:
        return STAGES.register(name)(StageKind(run, frozenset(options)))

    return add


def check_stages(recipe: RecipeConfig) -> None:
    """Make sure that every stage can run, before any does.

    Raises:
        RecipeError: with all problems.
    """
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
        except (ConfigError, RecipeError) as error:
            problems.append(f"stage {stage.name!r}: {error}")
        later = [s.name for s in recipe.stages if s.name not in earlier]
        problems += [
            f"stage {stage.name!r} refers to {name!r}, which comes later"
            for name in (stage.source, stage.teacher)
            if name in later
        ]
        earlier.append(stage.name)
    if problems:
        raise RecipeError("; ".join(problems))


def _check_oneshot(stage: StageConfig) -> None:
    from hf_compress.pruning.oneshot.api import check_config

    if stage.oneshot is None:
        raise RecipeError("oneshot is missing: say what goes, e.g. oneshot: {sparsity: 0.5}")
    if stage.oneshot.layout == "per_layer":
        raise RecipeError("layout per_layer makes a model that only its own file loads; use it from Python")
    check_config(stage.oneshot)


def _check_training(stage: StageConfig) -> None:
    import dataclasses

    from transformers import TrainingArguments

    from hf_compress.pruning.pruner import Pruner

    known = [f.name for f in dataclasses.fields(TrainingArguments)]
    for name in stage.arguments:
        if name not in known or name in ("output_dir", "push_to_hub", "resume_from_checkpoint"):
            raise RecipeError(f"arguments: {name!r} is no training argument to set{did_you_mean(name, known)}")
    compression = stage.compression
    distils = compression is not None and compression.distillation is not None
    if distils != (stage.teacher is not None):
        raise RecipeError("compression.distillation and teacher go together: give both or none")
    if compression is not None and compression.quantization is not None:
        raise RecipeError("compression.quantization belongs into a stage of kind 'quantize' after this one")
    if compression is not None and compression.pruning is not None:
        # Looks up structure, criterion and schedule.
        Pruner(compression.pruning)


@stage_kind("train", "config", "teacher", "compression", "arguments")
def train(context: StageContext) -> Mapping[str, Any]:
    """Train, distil or prune with `CompressionTrainer`; an interrupted stage continues at its last checkpoint."""
    from transformers import TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback

    from hf_compress.recipes.progress import ProgressLines, say
    from hf_compress.training.checkpoint import last_complete_checkpoint
    from hf_compress.training.publish import check_saved_zeros
    from hf_compress.training.restore import RestoreWeights
    from hf_compress.training.trainer import CompressionTrainer

    stage, task = context.stage, context.task
    set_seed(context.recipe.seed)
    options = {**fast_arguments(), **task.arguments, **stage.arguments}
    trainer = CompressionTrainer(
        initial_model(context),
        TrainingArguments(output_dir=str(context.work), seed=context.recipe.seed, **options),
        data_collator=task.collator,
        train_dataset=task.rows["train"],
        eval_dataset=task.rows.get("validation"),
        processing_class=task.processing_class,
        compute_metrics=task.trainer_metrics,
        compression=stage.compression,
        teacher=None if stage.teacher is None else context.resolve(stage.teacher),
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

    stage, task = context.stage, context.task
    auto = getattr(transformers, task.auto_class)
    labels = {"id2label": dict(enumerate(task.labels)), "label2id": {name: i for i, name in enumerate(task.labels)}}
    if stage.config is not None:
        config = transformers.AutoConfig.for_model(**stage.config, **labels)
        return auto.from_config(config)
    source = context.resolve(str(stage.source))
    if source != stage.source:  # an earlier stage has the labels already
        return auto.from_pretrained(source, trust_remote_code=False)
    return auto.from_pretrained(source, trust_remote_code=False, ignore_mismatched_sizes=True, **labels)


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
    history = [{k: v for k, v in entry.items() if isinstance(v, (int, float))} for entry in trainer.state.log_history]
    compression = None if stage.compression is None else _given(stage.compression.to_dict())
    return {"training": {**shown, "steps": trainer.state.global_step}, "compression": compression, "history": history}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@stage_kind("shrink", "layers", "ffn", "heads", "hidden", "filters")
def shrink(context: StageContext) -> Mapping[str, Any]:
    """Remove layers, FFN units, heads and channels for real: those asked for, or all that are entirely zero."""
    from hf_compress.architecture.shrink import shrink as shrink_model
    from hf_compress.measurement.load import load_model

    stage = context.stage
    layers = list(stage.layers) if isinstance(stage.layers, tuple) else stage.layers
    source = load_model(context.resolve(str(stage.source)))
    amounts: dict[str, Any] = {
        "layers": layers,
        "ffn": stage.ffn,
        "heads": stage.heads,
        "hidden": stage.hidden,
        "filters": stage.filters,
    }
    model = shrink_model(source, **amounts)
    model.save_pretrained(context.output)
    context.task.processing_class.save_pretrained(context.output)
    if stage.ffn is None:
        amounts["ffn"] = "units that are entirely zero"
    return {"shrink": _given(amounts)}


@stage_kind("oneshot", "oneshot", "samples")
def oneshot(context: StageContext) -> Mapping[str, Any]:
    """Prune weights, or remove units, without training, chosen and made good on training samples."""
    import torch

    from hf_compress.measurement.load import load_model
    from hf_compress.pruning.oneshot.api import prune_oneshot
    from hf_compress.pruning.oneshot.config import OneShotConfig

    stage, rows = context.stage, context.task.rows["train"]
    config = stage.oneshot or OneShotConfig()
    generator = torch.Generator().manual_seed(context.recipe.seed)
    chosen = torch.randperm(len(rows), generator=generator)[: stage.samples or _SAMPLES].tolist()
    batches = [
        dict(context.task.collator([rows[i] for i in chosen[first : first + _BATCH]]))
        for first in range(0, len(chosen), _BATCH)
    ]
    model = prune_oneshot(load_model(context.resolve(str(stage.source))), config, batches)
    model.save_pretrained(context.output)
    context.task.processing_class.save_pretrained(context.output)
    return {"oneshot": {**config.to_dict(defaults=False), "samples": len(chosen)}}


@stage_kind("quantize", "quantization")
def quantize(context: StageContext) -> Mapping[str, Any]:
    """Quantize with bitsandbytes."""
    from hf_compress.quantization.bnb import quantize as quantize_folder
    from hf_compress.quantization.config import QuantizationConfig

    config = context.stage.quantization or QuantizationConfig()
    quantize_folder(context.resolve(str(context.stage.source)), context.output, config)
    return {"quantization": config.to_dict()}
