"""What a card says of records in words and tables: data, conditions, spread, origin.

Level: base.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hf_compress.measurement.record import Measurement, Record
from hf_compress.report.tables import (
    NOT_MEASURED,
    Row,
    describe_conditions,
    draw_table,
    format_change,
    format_spread,
    format_value,
)

# Tag -> words in a record's method that stand for it.
_METHODS = {
    "distillation": {"distillation", "distill"},
    "pruning": {"pruning", "prune", "oneshot"},
    "shrinking": {"shrink"},
    "quantization": {"quantization", "quantize", "quantization_config"},
    "export": {"export"},
    "bitsandbytes": {"bitsandbytes"},
}
_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}
# Word in a record's method -> where its method comes from.
_PAPERS = {
    "distillation": "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531",
    "movement": "Sanh, Wolf, Rush: Movement Pruning, arXiv:2005.07683",
    "platon": "Zhang et al.: PLATON, arXiv:2206.12562",
    "cubic": "Zhu, Gupta: To prune, or not to prune, arXiv:1710.01878",
    "sparsegpt": "Frantar, Alistarh: SparseGPT, arXiv:2301.00774",
    "wanda": "Sun et al.: A Simple and Effective Pruning Approach for Large Language Models, arXiv:2306.11695",
    "load_in_8bit": "Dettmers et al.: LLM.int8(), arXiv:2208.07339",
    "nf4": "Dettmers et al.: QLoRA, arXiv:2305.14314",
    "gptq": "Frantar et al.: GPTQ, arXiv:2210.17323",
}
# A longer listing is folded, so that the numbers and the limits stay in view.
_FOLDED_LINES = 80
_LONG_LIST = 20


def methods_of(record: Record) -> list[str]:
    """Return which kinds of compression the record's method names, in the order they are usually done."""
    words = set(_words(record.method))
    return [tag for tag, signs in _METHODS.items() if words & signs]


def is_quantized(record: Record) -> bool:
    """Say whether a record is of a model in few bits, for transformers or exported."""
    export = record.method.get("export") or {}
    return bool(record.method.get("quantization_config") or export.get("quantization"))


def loads_with(quantizer: str | None, exported: str | None, is_adapter: bool = False) -> str:
    """Return the sentence that stands before the load code."""
    if is_adapter:
        return "Stock transformers and peft load it on top of its base; hf_compress is not needed:"
    if exported:
        return f"Stock transformers runs it on {_RUNTIMES.get(exported, exported)}; hf_compress is not needed:"
    needs = f", but {quantizer} is" if quantizer else ""
    return f"Stock transformers loads it; hf_compress is not needed{needs}:"


def papers_of(record: Record) -> list[str]:
    """Return the papers of the methods that the record names."""
    words = set(_words(record.method))
    return [paper for sign, paper in _PAPERS.items() if sign in words]


def before_after_table(rows: Sequence[Row], baseline: Record | None, result: Record) -> str:
    """Return the rows as markdown: before, after, change; or only the values if there is no baseline.

    Args:
        rows: of `comparison_rows([baseline, result])`, or `comparison_rows([result])`.
        baseline: the model before; None if there is none.
        result: the model after.
    """
    if not rows:
        return ""
    if baseline is None:
        return draw_table([["", result.model], *([r.label, _value(r.measurements[0])] for r in rows)], "markdown")
    header = ["", f"before ({baseline.model})", f"after ({result.model})", "change"]
    return draw_table([header, *([row.label, *_before_after(*row.measurements)] for row in rows)], "markdown")


def data_sentence(result: Record, baseline: Record | None) -> str:
    """Say on which data quality was measured."""
    data = result.dataset
    parts = [
        f"`{data['id']}`" if data.get("id") else "",
        f"configuration {data['config']}" if data.get("config") else "",
        f"revision {data['revision']}" if data.get("revision") else "",
        f"split {data['split']}" if data.get("split") else "",
        f"{data['samples']} samples" if data.get("samples") else "",
    ]
    named = ", ".join(p for p in parts if p)
    is_shared = baseline is not None and bool(data) and baseline.dataset == data
    both = "Both models were measured in the same run with the same data, metric and code." if is_shared else ""
    return " ".join(p for p in (f"Data: {named}." if named else "", both) if p)


def speed_sentence(result: Record, baseline: Record | None) -> str:
    """Say under which conditions speed and memory were measured."""
    place = result.environment
    device = place.get("device", "cpu")
    sentences = [f"Device: {place.get('processor', device) if device == 'cpu' else device}."]
    timed = result.find("latency")
    if timed:
        counts = sorted({len(m.samples) for m in timed})
        many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        sentences.append(
            f"Latency is the median of {many} samples after {timed[0].conditions.get('warmup', 'no')} warm-up passes; "
            f"all models were timed in turn in one process. Floating-point parameters: {_dtypes(result, baseline)}."
        )
    if result.find("peak_memory"):
        sentences.append("Peak memory is that of loading the model and one forward pass, without the libraries.")
    return " ".join(sentences)


def _dtypes(result: Record, baseline: Record | None) -> str:
    def dtype(record: Record) -> str:
        return str(record.find("latency")[0].conditions.get("dtype", "unknown")) if record.find("latency") else "-"

    if baseline is None or dtype(baseline) == dtype(result):
        return dtype(result)
    return f"{dtype(baseline)} before, {dtype(result)} after"


def spread_lines(rows: Iterable[Row], records: Sequence[Record]) -> list[str]:
    """Return one line per timed row: how far apart the samples were."""
    lines = []
    for row in rows:
        spreads = [
            f"{format_spread(m)} ({record.model})"
            for record, m in zip(records, row.measurements, strict=True)
            if m is not None and m.spread is not None
        ]
        if spreads:
            conditions = describe_conditions(dict(_first(row.measurements).conditions))
            lines.append(f"Spread at {conditions}, first to third quartile: {', '.join(spreads)}.")
    return lines


def provenance_lines(result: Record) -> list[str]:
    """Return seed, versions and machine."""
    place = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in dict(place.get("versions", {})).items())
    able = f" ({', '.join(place['instructions'])})" if place.get("instructions") else ""
    machine = ", ".join(str(place[k]) for k in ("os", "processor") if place.get(k)) + able
    lines = [
        f"Seed: {result.seed}" if result.seed is not None else "",
        f"Versions: {versions}" + (f", Python {place['python']}" if place.get("python") else "") if versions else "",
        f"Machine: {machine}, {place['cores']} cores" if machine and place.get("cores") else "",
    ]
    return [line for line in lines if line]


def as_yaml(data: Mapping[str, Any]) -> str:
    """Return what was done to a model as YAML that a person can read: without None, long lists cut."""
    import yaml

    # Through JSON, because YAML would write tuples as Python objects.
    plain = json.loads(json.dumps(_shortened(data), default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()


def listing(text: str) -> str:
    """Return YAML as a block of markdown, folded if it is long."""
    block = f"```yaml\n{text}\n```" if text else ""
    if text.count("\n") < _FOLDED_LINES:
        return block
    return f"<details>\n<summary>Show the whole listing</summary>\n\n{block}\n\n</details>"


def _shortened(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {k: _shortened(v) for k, v in data.items() if v is not None}
    if not isinstance(data, (list, tuple)):
        return data
    if len(data) > _LONG_LIST:
        return f"{len(data)} values, from {data[0]} to {data[-1]}; all are in the record"
    return [_shortened(v) for v in data]


def _words(data: Any) -> Iterator[str]:
    """Yield every key with something under it, and every string, in nested plain data."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if value or value == 0 and value is not False:
                yield str(key)
            yield from _words(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _words(value)
    elif isinstance(data, str):
        yield data


def _value(measurement: Measurement | None) -> str:
    return NOT_MEASURED if measurement is None else format_value(measurement)


def _before_after(before: Measurement | None, after: Measurement | None) -> tuple[str, str, str]:
    change = NOT_MEASURED if before is None or after is None else format_change(after, before)
    return _value(before), _value(after), change


def _first(measurements: Iterable[Measurement | None]) -> Measurement:
    return next(m for m in measurements if m is not None)
