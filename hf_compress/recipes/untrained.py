"""The stages of a recipe that train nothing: shrink, prune in one shot, quantize, export.

Level: outside. A new kind of stage is one decorated function here, or beside `train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_compress.recipes.config import ExportConfig
from hf_compress.recipes.stage import StageContext, stage_kind
from hf_compress.recipes.task import training_batches

# Of a stage that looks at training data, by default.
_SAMPLES = 1024


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
    return {"shrink": {name: value for name, value in amounts.items() if value is not None}}


@stage_kind("oneshot", "oneshot", "samples")
def oneshot(context: StageContext) -> Mapping[str, Any]:
    """Prune weights, or remove units, without training, chosen and made good on training samples."""
    from hf_compress.measurement.load import load_model
    from hf_compress.pruning.oneshot.api import prune_oneshot
    from hf_compress.pruning.oneshot.config import OneShotConfig

    config = context.stage.oneshot or OneShotConfig()
    batches = _training_batches(context)
    model = prune_oneshot(load_model(context.resolve(str(context.stage.source))), config, batches)
    model.save_pretrained(context.output)
    context.task.processing_class.save_pretrained(context.output)
    samples = min(len(context.task.rows["train"]), context.stage.samples or _SAMPLES)
    return {"oneshot": {**config.to_dict(defaults=False), "samples": samples}}


def _training_batches(context: StageContext) -> list[dict[str, Any]]:
    """Return training samples of the stage's number, drawn with the recipe's seed."""
    return training_batches(context.task, context.stage.samples or _SAMPLES, seed=context.recipe.seed)


@stage_kind("quantize", "quantization", "samples")
def quantize(context: StageContext) -> Mapping[str, Any]:
    """Quantize to a folder that stock transformers loads; schemes that are calibrated see training samples."""
    from hf_compress.quantization.api import quantize as quantize_folder
    from hf_compress.quantization.config import QuantizationConfig
    from hf_compress.quantization.schemes import scheme_of

    config = context.stage.quantization or QuantizationConfig()
    batches = _training_batches(context) if scheme_of(config).is_calibrated else []
    quantize_folder(context.resolve(str(context.stage.source)), context.output, config, batches)
    return {"quantization": config.to_dict()}


@stage_kind("export", "export", "samples")
def export(context: StageContext) -> Mapping[str, Any]:
    """Export for another runtime, in 8 bit if asked; ranges of static quantization are those of training samples."""
    from hf_compress.quantization.export import export as export_folder

    settings = context.stage.export or ExportConfig()
    batches = _training_batches(context) if settings.quantization == "static" else []
    source = context.resolve(str(context.stage.source))
    export_folder(source, settings.format, context.output, quantization=settings.quantization, batches=batches)
    return {"export": settings.to_dict()}
