"""`inspect_model`: what can be removed from a model so that stock transformers still loads it, and what cannot.

Level: state. Nothing is loaded but the config; sizes are counted on the meta device, so they are exact.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy, Axis, probe
from hf_compress.architecture.attention import find_head_axes
from hf_compress.architecture.capability_text import TITLES, report_lines
from hf_compress.architecture.cost import forward_macs, forward_milliseconds
from hf_compress.architecture.kept import width_of
from hf_compress.architecture.loading import refusing
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError

_FRACTIONS = (0.75, 0.5, 0.25)
_FLOAT32_BYTES = 4
# Offered by `shrink` in this version; the other axes are found too, and reported as not offered.
_WIDTHS = ("hidden", "filters", "head_size")
_OFFERED = ("ffn", "heads", "layers", *_WIDTHS)


@dataclass(frozen=True)
class Prediction:
    """The exact size of the model after one axis was shrunk.

    Args:
        field: the config field.
        size: its new value.
        parameters: what then remains, tied ones once.
        bytes: the same at float32.
        macs: multiply-accumulates of a forward pass, as in `CapabilityReport`; None where they cannot be counted.
        latency: milliseconds of a pass of one sample, as in `CapabilityReport`; None where it was not measured.
    """

    field: str
    size: int
    parameters: int
    bytes: int
    macs: int | None = None
    latency: float | None = None


@dataclass(frozen=True)
class AxisReport:
    """What can be done along one axis.

    Args:
        name: "ffn", "layers", "heads", "hidden", "filters", "head_size" or "vocabulary".
        field: the config field that says its size.
        size: its value now.
        smallest: the smallest legal value; `size` where nothing can be removed in this version.
        parameters_per_unit: what one unit costs in the whole model (for layers: the last layer).
        is_offered: whether `shrink` can remove units of it in this version.
        note: what to know before choosing a size.
        predictions: exact sizes at 75, 50 and 25 %.
    """

    name: str
    field: str
    size: int
    smallest: int
    parameters_per_unit: int
    is_offered: bool
    note: str
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class CapabilityReport:
    """What is known of a model before anything is changed.

    Args:
        model_class: name of its class.
        model_type: as its config says.
        parameters: number of parameters, tied ones once.
        bytes: the same at float32.
        macs: multiply-accumulates of a forward pass of one sample (texts of 128 tokens), by torch's own counter; None
            where it cannot be counted without weights.
        latency: milliseconds of that pass on this machine's CPU, median, with made-up weights; None where it was not
            measured.
        axes: what its config can make smaller.
        fixed: what cannot be removed -> why.
    """

    model_class: str
    model_type: str
    parameters: int
    bytes: int
    macs: int | None
    axes: tuple[AxisReport, ...]
    fixed: dict[str, str]
    latency: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Return the report as a table for a terminal."""
        return "\n".join(report_lines(self))

    def __str__(self) -> str:
        return self.to_text()


def inspect_model(model: Any, *, latency: bool = False) -> CapabilityReport:
    """Return what can be removed from a model and still load plainly, with the exact sizes that follow.

    Args:
        model: a transformers model, a config, or a Hub id or folder, of which only the config is read.
        latency: also build each of the sizes with made-up weights, on the CPU, and time it.

    Raises:
        ArchitectureError: if it is none of these, or cannot be built from its config.
    """
    subject: Any = model if isinstance(model, nn.Module) else _from_config(model)
    anatomy = probe(subject)
    config, total = subject.config, probing.count(anatomy.shapes)
    heads = find_head_axes(subject)
    widths, reasons = find_width_axes(subject)
    named = [axis for axis in anatomy.axes if axis.name in ("ffn", "layers", "vocabulary")]
    named += [] if isinstance(heads, str) else heads
    named += widths
    report = CapabilityReport(
        model_class=type(subject).__name__,
        model_type=str(getattr(config, "model_type", "")),
        parameters=total,
        bytes=total * _FLOAT32_BYTES,
        macs=forward_macs(type(subject), config),
        axes=tuple(_axis_report(axis, anatomy, type(subject), config) for axis in sorted(named, key=_order)),
        fixed=({"heads": heads} if isinstance(heads, str) else {}) | _fixed(anatomy, named, config) | reasons,
    )
    return _timed(report, type(subject), config, named) if latency else report


def _timed(report: CapabilityReport, model_class: type, config: Any, axes: Sequence[Axis]) -> CapabilityReport:
    """Return the report with times of the model and of all predictions."""
    own = forward_milliseconds(model_class, config, report.parameters)
    by_field = {axis.field: axis for axis in axes}

    def timed(p: Prediction) -> Prediction:
        smaller = probing.with_fields(config, by_field[p.field].values(p.size))
        return dataclasses.replace(p, latency=forward_milliseconds(model_class, smaller, p.parameters))

    timed_axes = [dataclasses.replace(a, predictions=tuple(map(timed, a.predictions))) for a in report.axes]
    return dataclasses.replace(report, axes=tuple(timed_axes), latency=own)


def _from_config(source: Any) -> nn.Module:
    import transformers

    config = source
    if isinstance(source, (str, os.PathLike)):
        with refusing(ArchitectureError, f"expected the id or folder of a transformers model, and {str(source)!r}"):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not isinstance(config, transformers.PretrainedConfig):
        raise ArchitectureError(
            f"expected a transformers model, a config, or a Hub id or folder, found {type(source).__name__}"
        )
    for name in getattr(config, "architectures", None) or ():
        model_class = getattr(transformers, str(name), None)
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return _build(model_class, config)
    try:
        with probing.quiet():
            return _build(transformers.MODEL_MAPPING[type(config)], config)
    except KeyError as error:
        raise ArchitectureError(
            f"expected a config of an architecture in transformers, found {type(config).__name__}; its own code is "
            "not run here, so load the model and pass it"
        ) from error


def _build(model_class: Any, config: Any) -> nn.Module:
    # Some configs map to several classes (one per task head); the first is the plain one.
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    probing.base_shapes(model_class, config)
    return probing.build(model_class, config)


def _order(axis: Axis) -> int:
    return list(TITLES).index(axis.name)


def _axis_report(axis: Axis, anatomy: Anatomy, model_class: type, config: Any) -> AxisReport:
    is_offered = axis.name in _OFFERED
    return AxisReport(
        name=axis.name,
        field=axis.field,
        size=axis.size,
        smallest=(*axis.legal, 1)[0] if is_offered else axis.size,
        parameters_per_unit=_parameters_per_unit(axis, anatomy, model_class, config),
        is_offered=is_offered,
        note=_note(axis),
        predictions=_predict(axis, model_class, config) if is_offered else (),
    )


def _parameters_per_unit(axis: Axis, anatomy: Anatomy, model_class: type, config: Any) -> int:
    """Return how many parameters go with one unit of `axis` in the whole model (for layers: the last layer)."""
    if axis.stacks:
        last = tuple(f"{prefix}{axis.size - 1}." for prefix in axis.stacks)
        return probing.count({n: s for n, s in anatomy.shapes.items() if n.startswith(last)})
    if axis.name in _WIDTHS:
        size = axis.legal[-2] if axis.legal else axis.size - 1
        fewer = probing.try_fields(model_class, config, axis.values(size))
        less = probing.count(anatomy.shapes) if isinstance(fewer, str) else probing.count(fewer)
        return (probing.count(anatomy.shapes) - less) // (axis.size - size)
    total = 0
    for piece in axis.slices:
        shape = anatomy.shapes[piece.parameter]
        total += piece.per_unit * torch.Size(shape).numel() // max(shape[piece.dim], 1)
    return total


def _note(axis: Axis) -> str:
    if axis.name == "ffn":
        return "one width for all layers; multiples of 8 are fastest on GPUs"
    if axis.name == "heads":
        queries = max(each for _, each in axis.fields)
        if axis.legal:
            return f"legal: {', '.join(map(str, axis.legal))}; each with {queries} query heads"
        return "with their keys and values" if queries == 1 else f"key-value heads, each with {queries} query heads"
    if axis.name == "layers":
        return "whole layers; the last one stays"
    if axis.name == "vocabulary":
        return "with its tokenizer, for the text of a corpus: shrink_vocabulary"
    multiple = f"; multiples of {axis.legal[0]}" if axis.legal and axis.legal[0] > 1 else ""
    heads = "; heads go with it" if any(each != 1 for _, each in axis.fields) else ""
    what = "entries of every head" if axis.name == "head_size" else "the same channels in all layers"
    return f"{what}{multiple}{heads}"


def _predict(axis: Axis, model_class: type, config: Any) -> tuple[Prediction, ...]:
    found = []
    sizes = [width_of(fraction, axis.size) for fraction in _FRACTIONS]
    if axis.legal:
        sizes = [max(n for n in axis.legal if n <= max(size, axis.legal[0])) for size in sizes]
    for size in dict.fromkeys(sizes):
        shapes = probing.try_shapes(model_class, probing.with_fields(config, axis.values(size)))
        if size < axis.size and not isinstance(shapes, str):
            total = probing.count(shapes)
            macs = forward_macs(model_class, probing.with_fields(config, axis.values(size)))
            found.append(Prediction(axis.field, size, total, total * _FLOAT32_BYTES, macs))
    return tuple(found)


def _fixed(anatomy: Anatomy, found: Sequence[Axis], config: Any) -> dict[str, str]:
    """Return why the axes that people ask for are not there, by the standard names that configs map theirs to."""
    aliases = getattr(config, "attribute_map", {})
    reasons = {}
    for name, standard in (("ffn", "intermediate_size"), ("layers", "num_hidden_layers")):
        if any(axis.name == name for axis in found):
            continue
        own = aliases.get(standard, standard)
        fields = [f for f in (*anatomy.fixed, *(a.field for a in anatomy.axes)) if f.rpartition(".")[2] == own]
        reasons[name] = "; ".join(_reason(anatomy, f) for f in fields) or "the config has no field for it"
    return reasons


def _reason(anatomy: Anatomy, field: str) -> str:
    why = anatomy.fixed.get(field)
    if why == "changes no shape":
        return f"{field} changes no shape, so the config cannot say that some are gone"
    if why is not None:
        return f"{field} {why}"
    return (
        f"{field} changes the size of each part instead of removing whole ones, or parts that this version cannot cut"
    )
