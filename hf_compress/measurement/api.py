"""`measure`: saved models in, one record each out; all under the same conditions in one run.

Level: state.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from hf_compress.architecture.modes import outside_training
from hf_compress.errors import ConfigError, did_you_mean
from hf_compress.measurement.adapter import describe_adapter, is_adapter, whole_model
from hf_compress.measurement.config import MeasureSettings
from hf_compress.measurement.environment import environment
from hf_compress.measurement.exported import is_exported, read_report
from hf_compress.measurement.inputs import check_sample, sized_inputs
from hf_compress.measurement.load import load_measured, read_config
from hf_compress.measurement.memory import measure_peak_memory
from hf_compress.measurement.notes import honest_notes, unquantized_source
from hf_compress.measurement.objects import describe_object, measure_object
from hf_compress.measurement.parts import describe_parts
from hf_compress.measurement.quality import Evaluate, measure_quality
from hf_compress.measurement.record import Measurement, Record, save_record
from hf_compress.measurement.size import measure_size
from hf_compress.measurement.speed import measure_latency

# A saved model's folder, or a model in memory.
Model: TypeAlias = nn.Module | str | Path


def measure(
    models: Mapping[str, Model] | str | Path,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
    evaluate: Evaluate | None = None,
    dataset: Mapping[str, Any] | None = None,
    seed: int | None = None,
    command: str = "",
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    output_dir: str | Path | None = None,
    **settings: Any,
) -> list[Record]:
    """Measure size, speed, peak memory, load time and quality of models, on the GPU if there is one.

    Args:
        models: name -> saved model folder, in the order of the pipeline, or one folder. Or name -> a model in memory,
            for classes of your own: it stays on its device, its bytes are those of its weights as safetensors, and
            it has no memory and load time, for which a fresh process would have to know its class.
        inputs: a batch, its rows repeated to each batch size; None makes one up, which needs a config.
        evaluate: the task's metrics of a loaded model, by name, e.g. {"accuracy": 0.98}; None measures no quality.
        dataset: id, revision, split and number of samples behind `evaluate`.
        seed: of the run that made the models.
        command: that made the models.
        methods: name -> what was done to that model, as plain data (configs, training arguments).
        output_dir: where `<name>.json` goes for each model; None writes nothing.
        **settings: fields of `MeasureSettings`: baseline (default the first model), result (default the last),
            batch_sizes, length, warmup, rounds, seconds, blocks, memory.

    Returns:
        One record per model, in the order given.

    Raises:
        ConfigError: if a folder is no saved model, or inputs, a setting or name is wrong.
        UnsupportedError: if a model's class or input is not supported.
        RecordError: if a metric is not a finite number.
    """
    options = MeasureSettings.from_dict(settings)
    named = _named(models)
    roles = _roles(list(named), options)
    _check_known(methods or {}, named)
    measured = _measure_unloaded(named, options, inputs)
    loaded = {name: model if isinstance(model, nn.Module) else load_measured(model) for name, model in named.items()}
    # Described before anything runs, since a forward pass may change quantized modules.
    what = {
        name: {"step": step, **(methods or {}).get(name, {}), **_describe(named[name], model)}
        for step, (name, model) in enumerate(loaded.items())
    }
    for name, times in _measure_speed(loaded, options, inputs).items():
        measured[name] += times
    for name, model in loaded.items() if evaluate else ():
        _say(f"{name}: quality")
        with outside_training(model):
            measured[name] += measure_quality(model, evaluate)  # type: ignore[arg-type]
    place, data = environment(), dict(dataset or {}) if evaluate else {}
    records = [
        Record(name, roles[name], tuple(measured[name]), place, data, seed, command, method=what[name])
        for name in named
    ]
    return _finish(records, output_dir)


def _measure_unloaded(
    named: Mapping[str, nn.Module | Path], options: MeasureSettings, sample: Mapping[str, torch.Tensor] | None
) -> dict[str, list[Measurement]]:
    """Return sizes, and of folders the peak memory."""
    if sample is not None:
        check_sample(sample)
    # Sizes come first: they are fast, and a folder that is no whole model is refused before anything slow starts.
    found = {n: measure_object(m) if isinstance(m, nn.Module) else measure_size(m) for n, m in named.items()}
    # Memory comes before loading, so that no other model takes memory at that time.
    for name, folder in named.items() if options.memory else ():
        if not isinstance(folder, nn.Module):
            _say(f"{name}: memory")
            found[name] += measure_peak_memory(folder, options.batch_sizes[0], length=options.length, inputs=sample)
    return found


def _measure_speed(
    loaded: Mapping[str, nn.Module], options: MeasureSettings, sample: Mapping[str, torch.Tensor] | None
) -> dict[str, list[Measurement]]:
    _say(f"speed of {', '.join(loaded)}, in turn")
    return measure_latency(
        loaded,
        functools.partial(sized_inputs, length=options.length, sample=sample),
        batch_sizes=options.batch_sizes,
        warmup=options.warmup,
        rounds=options.rounds,
        seconds=options.seconds,
        blocks=min(options.blocks, options.rounds),
    )


def _finish(records: list[Record], output_dir: str | Path | None) -> list[Record]:
    baseline = next((r for r in records if r.role == "baseline"), None)
    records = [
        dataclasses.replace(r, notes=honest_notes(r, baseline, unquantized_source(r, records[:i])))
        for i, r in enumerate(records)
    ]
    for record in records if output_dir is not None else ():
        save_record(record, Path(str(output_dir)) / f"{record.model}.json")
    return records


def _named(models: Mapping[str, Model] | str | Path) -> dict[str, nn.Module | Path]:
    if isinstance(models, (str, Path)):
        models = {Path(models).resolve().name: models}
    if isinstance(models, nn.Module):
        raise ConfigError(f"a model in memory needs a name; write {{'name': model}}, found {type(models).__name__}")
    if not models:
        raise ConfigError("there are no models to measure; give a mapping of names to saved model folders")
    for name in models:
        if not re.fullmatch(r"\w[\w.+-]*", str(name)):
            raise ConfigError(f"a model's name becomes a file name: letters, digits and . _ + - only, found {name!r}")
    return {str(name): model if isinstance(model, nn.Module) else Path(model) for name, model in models.items()}


def _roles(names: list[str], options: MeasureSettings) -> dict[str, str]:
    for name in (options.baseline, options.result):
        _check_known([name] if name else [], names)
    result = options.result or next((n for n in reversed(names) if n != options.baseline), None)
    baseline = options.baseline or next((n for n in names if n != result), None)
    roles = dict.fromkeys(names, "intermediate")
    return {**roles, **({baseline: "baseline"} if baseline else {}), **({result: "result"} if result else {})}


def _check_known(names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no model {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")


def _describe(folder: nn.Module | Path, model: nn.Module) -> dict[str, Any]:
    """Return what the saved model itself says about how it was made."""
    if isinstance(folder, nn.Module):
        return describe_object(folder)
    # A program that was exported from a plain module has no config.
    has_config = not is_exported(folder) or (folder / "config.json").is_file()
    config = read_config(whole_model(folder)) if has_config else {}
    name = (config.get("architectures") or ["exported"])[0]
    found: dict[str, Any] = {"architecture": name}
    if is_adapter(folder):
        found["adapter"] = describe_adapter(folder)
    if config.get("quantization_config"):
        found["quantization_config"] = {k: v for k, v in config["quantization_config"].items() if k[0] != "_"}
        found["left_alone"] = _plain_layers(model.get_base_model() if is_adapter(folder) else model)
    found["parts"] = describe_parts(folder)
    report = read_report(folder)
    if report:
        found["export"] = report
    if (folder / "oneshot.json").is_file():
        oneshot = json.loads((folder / "oneshot.json").read_text(encoding="utf-8"))
        found["oneshot"] = {**oneshot["config"], "calibration": oneshot["calibration"]}
    return found


def _plain_layers(model: nn.Module) -> list[str]:
    """Return the layers that hold weights of their own in full precision, those of all blocks under one name."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
    names = (n for n, m in model.named_modules() if type(m) in kinds and ".lora_" not in n)
    return sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})


def _say(text: str) -> None:
    print(f"measure: {text}", file=sys.stderr)
