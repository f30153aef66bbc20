"""The finished model of a Trainer: whole, shrunk, saved and quantized.

Level: glue.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from hf_compress.errors import UnsupportedError
from hf_compress.measurement.load import load_model
from hf_compress.measurement.objects import save_weights
from hf_compress.output import free_folder, whole_folder
from hf_compress.pruning.adapters import merge_adapter
from hf_compress.training.setup import is_plain_module, is_zero3


def save_compressed(trainer: Any, output_dir: str | Path) -> dict[str, Path]:
    """Shrink what was pruned in whole units, save, and quantize; see `CompressionMixin.save_compressed`."""
    output = free_folder(output_dir)
    if _is_adapter_on_codes(trainer):
        # Nothing can be merged into codes.
        return _write_adapter(trainer, output)
    folders = {"model": output / "model"}
    if _is_quantized_later(trainer, trainer.accelerator.unwrap_model(trainer.model)):
        folders["quantized"] = output / "quantized"
    # All ranks have looked before one writes, and none goes on before it is there.
    trainer.accelerator.wait_for_everyone()
    with _gathered(trainer, output) as model:
        if trainer.is_world_process_zero():
            _write_compressed(trainer, model, output)
    trainer.accelerator.wait_for_everyone()
    return folders


@contextlib.contextmanager
def _gathered(trainer: Any, output: Path) -> Iterator[Any]:
    """Yield the model with whole weights; where processes share them, one that the main process reads back."""
    if not trainer.is_fsdp_enabled and not is_zero3():
        yield trainer.accelerator.unwrap_model(trainer.model)
        return
    if is_plain_module(trainer.accelerator.unwrap_model(trainer.model)):
        raise UnsupportedError(
            "a plain module that processes share cannot be read back, since no config says what it is; save_model "
            "writes its weights, or make it a PreTrainedModel"
        )
    whole = output.with_name(f".{output.name}.whole")
    # The Trainer puts the weights together; every process takes part.
    trainer.save_model(str(whole), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    try:
        yield load_model(whole, "cpu") if trainer.is_world_process_zero() else None
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(whole, ignore_errors=True)


def _is_quantized_later(trainer: Any, model: nn.Module) -> bool:
    # A plain module that was trained with rounded weights goes to `export`, which stores its codes.
    config = trainer.compression
    return config is not None and config.quantization is not None and not is_plain_module(model)


def _is_adapter_on_codes(trainer: Any) -> bool:
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "merge_and_unload") else None
    return bool(getattr(base, "is_quantized", False))


def _write_adapter(trainer: Any, output: Path) -> dict[str, Path]:
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        with whole_folder(output) as part:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(part / "adapter")
    trainer.accelerator.wait_for_everyone()
    return {"adapter": output / "adapter"}


def _write_compressed(trainer: Any, model: Any, output: Path) -> None:
    from hf_compress.architecture.shrink import shrink
    from hf_compress.quantization.api import quantize
    from hf_compress.quantization.aware import unrounded

    if hasattr(model, "merge_and_unload"):
        model = merge_adapter(copy.deepcopy(model))
    if trainer.pruner is not None and trainer.pruner.plan.structure.removable:
        # The smaller one computes from the weights as they are, until it is quantized.
        with unrounded(model):
            model = shrink(model)
    with whole_folder(output) as part:
        if is_plain_module(model):
            save_weights(model, part / "model")
        else:
            model.save_pretrained(part / "model")
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(part / "model")
        if _is_quantized_later(trainer, model):
            quantize(part / "model", part / "quantized", trainer.compression.quantization)
