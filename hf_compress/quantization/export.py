"""`export`: a model for ONNX Runtime, OpenVINO or ExecuTorch, in 8 bit if asked, checked against the torch model.

Level: state. The work is done by `transformers.exporters`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.modes import outside_training
from hf_compress.errors import ConfigError, DataError, MissingDependencyError, QuantizationError, UnsupportedError
from hf_compress.imports import is_available, require
from hf_compress.measurement import load
from hf_compress.measurement.exported import REPORT, ExportedModule, is_exported
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.output import copy_companions, free_folder, whole_folder
from hf_compress.quantization.aware import as_codes
from hf_compress.quantization.formats import FORMATS, Format

# Largest relative distance of outputs, by default; without batches the inputs are random tokens, on which 8 bits tell
# less than on real ones. A program that computes something else is off by 1 or more.
_TOLERANCES = {None: 0.01, "dynamic": 0.5, "static": 0.5}

Batch = Mapping[str, torch.Tensor]


def export(
    model: nn.Module | str | Path,
    format: str,
    output: str | Path,
    *,
    quantization: str | None = None,
    batches: Sequence[Batch] = (),
    tolerance: float | None = None,
) -> Path:
    """Write `model` for another runtime; shapes are free there, so models with other sizes in each layer go too.

    `transformers.exporters.ExportedModel.from_pretrained` loads what is written, without hf_compress, and `measure`
    takes it like any model. Language models are exported as one forward pass without a cache of keys and values.
    Layers that were trained with rounded weights are stored in their 8-bit codes, with observed ranges of activations;
    leave `quantization` out then.

    Args:
        model: a plain transformers model, or the folder of one; a model of your own code, or any `nn.Module` that
            takes tensors by name, as an object; without a config there must be `batches`.
        format: "onnx", "openvino" or "executorch".
        output: folder to make; it must not exist or be empty.
        quantization: None; "dynamic", 8-bit weights, and activations rounded as they come; "static", 8-bit weights
            and activations, in ranges that `batches` show.
        batches: inputs by name; all of them are used, for "static" only. The first one also names the inputs.
        tolerance: largest relative distance (Frobenius) of the outputs from those of the model, on the first and
            last batch, or on random inputs of two shapes; default 0.01, in 8 bit 0.5.

    Returns:
        `output`. The distance found is in its `compression.json`.

    Raises:
        OutputExistsError: if `output` already holds something.
        ConfigError: if `model` is no saved model, or there is no such format or quantization.
        DataError: if "static" has no batches.
        MissingDependencyError: if a package is missing, with the line that installs it.
        QuantizationError: if the model is quantized already, or the result too far from it; nothing is written then.
        UnsupportedError: if no inputs can be made up for the model, and there are no `batches`; if it returns a
            class of its own; or if the exporter fails on it.
    """
    kind = _checked(format, quantization, batches)
    output = free_folder(output)
    source = _source(model)
    samples = [without_labels(source, batch) for batch in batches]
    with whole_folder(output) as part:
        # NNCF prints its progress to where results are printed.
        with outside_training(source), contextlib.redirect_stdout(sys.stderr), as_codes(source, format != "openvino"):
            report = _write(source, kind(quantization, samples), samples, part, kind.tidy)
        report = {"format": format, "quantization": quantization, "samples": _count(samples, quantization), **report}
        report["tolerance"] = _TOLERANCES[quantization] if tolerance is None else tolerance
        _check(report)
        (part / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if not isinstance(model, nn.Module):
            copy_companions(Path(model), part)
    return output


def _source(model: nn.Module | str | Path) -> Any:
    """Return the model to export; a folder is loaded."""
    way_out = "which no exporter reads; export its 16- or 32-bit source"
    if isinstance(model, nn.Module):
        if getattr(model, "is_quantized", False):
            raise QuantizationError(f"this model is quantized, {way_out}")
        return model
    if is_exported(model) or load.is_quantized(model):
        kind = "exported already" if is_exported(model) else "quantized"
        raise QuantizationError(f"{Path(model).name} is {kind}, {way_out}")
    return load.load_model(model, "cpu")


def _check(report: dict[str, Any]) -> None:
    if not report["difference"] <= report["tolerance"]:
        raise QuantizationError(
            f"the outputs of the {report['format']} model lie {report['difference']:.2g} (relative) from those of the "
            f"torch model, at most {report['tolerance']:g} was expected; nothing was written. Leave quantization out, "
            "give static more batches that are like the real inputs, or set tolerance"
        )


def check_form(format: str, quantization: str | None) -> Format:
    """Return a format that knows the quantization.

    Raises:
        ConfigError: if there is no such format or quantization.
    """
    kind = FORMATS.get(format)
    if quantization is not None and quantization not in kind.quantizations:
        raise ConfigError(f"quantization must be none, {', '.join(kind.quantizations)}, found {quantization!r}")
    return kind


def _checked(format: str, quantization: str | None, batches: Sequence[Batch]) -> Format:
    kind = check_form(format, quantization)
    needed = ["transformers.exporters", *(["transformers.exporters.quantizers"] if quantization else [])]
    if any(not is_available(module) for module in needed):
        raise MissingDependencyError(
            f"exporting{' in 8 bit' if quantization else ''} needs a newer transformers; install it with: "
            "pip install 'transformers>=5.23'"
        )
    for package in (*kind.packages, *(kind.quantizations[quantization] if quantization else ())):
        require(package, f"exporting to {format}")
    if quantization == "static" and not batches:
        raise DataError(
            "static quantization is calibrated on samples: give batches like the real inputs (--text FILE)"
        )
    return kind


def _write(
    source: Any, settings: Any, samples: Sequence[Batch], folder: Path, tidy: Callable[[Path], None]
) -> dict[str, Any]:
    from transformers.exporters import AutoHfExporter

    inputs = dict(samples[0]) if samples else example_inputs(source, 2)
    _check_outputs(source, inputs)
    is_caching = getattr(getattr(source, "config", None), "use_cache", None)
    if is_caching:
        source.config.use_cache = False
    try:
        # The exporter may pop inputs that only switch outputs.
        exported = _exported(AutoHfExporter.from_config(settings), source, dict(inputs), settings)
        if not _is_known(exported.config):
            # Whoever loads the program would look for the class of this config, which has code of its own.
            exported.config = None
        exported.save_pretrained(folder)
        tidy(folder)
        # Ranges fit inputs that are like the samples, so these are compared, where there are some.
        other = samples[-1] if samples else example_inputs(source, 3, 17 if "input_ids" in inputs else None)
        difference = _difference(source, ExportedModule(folder, "cpu", is_exact=True), inputs, other)
    finally:
        if is_caching:
            source.config.use_cache = is_caching
    parameters = sum(p.numel() for p in source.parameters())
    return {"difference": difference, "parameters": parameters, "inputs": sorted(inputs)}


def _exported(exporter: Any, source: Any, inputs: Batch, settings: Any) -> Any:
    """Return the program.

    Raises:
        UnsupportedError: with what the exporter says; each of its backends fails in ways of its own.
    """
    try:
        return exporter.export(source, inputs, settings)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = (str(error).strip().splitlines() or [""])[0]
        raise UnsupportedError(
            f"{type(exporter).__name__} cannot take {type(source).__name__} ({type(error).__name__}: {told}); nothing "
            "was written. Try another format, leave quantization out, or make forward free of branches on values"
        ) from error


@torch.no_grad()
def _check_outputs(source: Any, inputs: Batch) -> None:
    """Refuse outputs whose class only this process knows: the program could not be loaded elsewhere."""
    from transformers.utils import ModelOutput

    if _is_known(getattr(source, "config", None)):
        return
    kind = type(source(**inputs))
    if issubclass(kind, ModelOutput) and (kind is ModelOutput or not kind.__module__.startswith("transformers.")):
        raise UnsupportedError(
            f"{type(source).__name__} returns a {kind.__name__}, whose class a program cannot bring along; return a "
            "dict, a tuple or one of transformers.modeling_outputs"
        )


def _is_known(config: Any) -> bool:
    from transformers import CONFIG_MAPPING

    is_stock = type(config).__module__.startswith("transformers.")
    return is_stock and getattr(config, "model_type", None) in CONFIG_MAPPING


def example_inputs(model: Any, batch_size: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """Return dummy inputs with everything that the model's tokenizer gives; an exported program takes nothing else."""
    inputs = dummy_inputs(model, batch_size, length)
    takes = inspect.signature(model.forward).parameters
    if (
        getattr(getattr(model, "config", None), "type_vocab_size", 0)
        and "token_type_ids" in takes
        and "input_ids" in inputs
    ):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs


@torch.no_grad()
def _difference(source: Any, exported: ExportedModule, inputs: Batch, other: Batch) -> float:
    """Return the larger relative distance of outputs on two batches."""
    found = []
    for batch in (inputs, other):
        wanted, given = _first(source(**batch)).float(), _first(exported(**batch)).float()
        found.append(float((wanted - given).norm() / wanted.norm().clamp_min(1e-12)))
    return max(found)


def _first(outputs: Any) -> torch.Tensor:
    """Return the logits, or else the first tensor, of what a model returned."""
    if isinstance(outputs, Mapping):
        outputs = [outputs.get("logits"), *outputs.values()]
    parts = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    return next(part for part in parts if isinstance(part, torch.Tensor))


def _count(samples: Sequence[Batch], quantization: str | None) -> int:
    return sum(len(next(iter(batch.values()))) for batch in samples) if quantization == "static" else 0
