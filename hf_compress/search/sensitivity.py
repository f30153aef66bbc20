"""What happens to the predictions when one part of a model alone is pruned or quantized, and how to share out zeros.

Level: outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_compress.architecture.modes import outside_training
from hf_compress.errors import ArchitectureError, ConfigError, DataError
from hf_compress.recipes.progress import say
from hf_compress.recipes.recipe import write_json
from hf_compress.registry import Registry

Batch = Mapping[str, torch.Tensor]
KINDS: Registry[Callable[..., Any]] = Registry("kind of part")


@dataclass(frozen=True)
class Sensitivity:
    """What one change of one part does.

    Args:
        kind: "weights", "ffn", "heads", "layers" or "quantized".
        part: name of the parameter, module or layer.
        level: fraction that was removed, or the name of the scheme.
        loss: how far the predictions moved: mean divergence in nats, half the mean squared difference of single
            outputs.
        size: weights that the part has.
    """

    kind: str
    part: str
    level: float | str
    loss: float
    size: int


def sensitivity(
    model: Any,
    batches: Sequence[Batch],
    *,
    kinds: Sequence[str] = ("weights", "ffn", "heads", "layers", "quantized"),
    levels: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    schemes: Sequence[str] = ("int8", "nf4"),
    output: str | Path | None = None,
) -> list[Sensitivity]:
    """Change each part of a model alone, in several degrees, and measure what that does to the predictions.

    No labels are needed. Kinds that a model cannot lose, such as heads of a model without attention, are left out.

    Args:
        model: a plain transformers model with logits; it is left as it is.
        batches: inputs by name; a few hundred samples.
        kinds: weights (the smallest entries of each matrix), ffn and heads (the weakest units of each layer), layers
            (each alone), quantized (each linear layer).
        levels: fractions that go, 0-1.
        schemes: of bitsandbytes or torchao, for "quantized".
        output: JSON file of the results; an interrupted run goes on there.

    Returns:
        One result for each part and level.

    Raises:
        ConfigError: for unknown kinds, levels that are no fractions, or a file of another model or of other batches.
        DataError: if there are no batches.
        QuantizationError: if a scheme cannot be simulated, or the model has no logits.
    """
    from hf_compress.quantization.sensitivity import mean_divergence, predictions

    if not batches:
        raise DataError("expected at least one batch of inputs to compare predictions on, found none")
    if not all(0 < level < 1 for level in levels):
        raise ConfigError(f"levels must be above 0 and below 1, found {list(levels)}")
    changes = [KINDS.get(kind) for kind in kinds]
    with outside_training(model), torch.no_grad():
        wanted = [list(predictions(model, batch)) for batch in batches]
        mark = _fingerprint(model, wanted)
        done = _read(output, mark)
        for change in changes:
            for kind, part, level, size, applied in change(model, tuple(levels), tuple(schemes)):
                key = f"{kind} {part} {level}"
                if key in done:
                    continue
                with applied() as changed:
                    loss = mean_divergence(changed, batches, wanted)
                done[key] = Sensitivity(kind, part, level, loss, size)
                say(f"sensitivity: {key}: {loss:.4g}")
                _write(output, mark, done)
    return list(done.values())


def share_out(found: Sequence[Sensitivity], sparsity: float) -> dict[str, float]:
    """Return the sparsity of each weight that costs the least for a sparsity of all, as `pattern_sparsity` takes it.

    The knapsack's greedy way: the step that costs the least for each weight that it removes is taken, until enough are
    gone. What weights do to the predictions together is taken for the sum of what they do alone.

    Args:
        found: of `sensitivity`, with the kind "weights".
        sparsity: of all these weights together, 0-1; reached or passed by less than one step.

    Raises:
        ConfigError: if there are no weights, or the levels that were measured do not reach so far.
    """
    rows: dict[str, list[Sensitivity]] = {}
    for one in found:
        if one.kind == "weights":
            rows.setdefault(one.part, []).append(one)
    if not rows:
        raise ConfigError("there are no results of the kind 'weights' to share out zeros by")
    total, chosen = sum(each[0].size for each in rows.values()), dict.fromkeys(rows, 0.0)
    losses = dict.fromkeys(rows, 0.0)
    while sum(rows[part][0].size * level for part, level in chosen.items()) < sparsity * total:
        steps = [
            ((s.loss - losses[part]) / (s.size * (float(s.level) - chosen[part])), part, s)
            for part, each in rows.items()
            for s in each
            if float(s.level) > chosen[part]
        ]
        if not steps:
            raise ConfigError(f"the levels that were measured reach no sparsity of {sparsity}; measure a higher one")
        _, part, step = min(steps, key=lambda s: s[:2])
        chosen[part], losses[part] = float(step.level), step.loss
    return {f"^{re.escape(part)}$": level for part, level in chosen.items()}


@KINDS.register("weights")
def _weights(model: Any, levels: Sequence[float], schemes: Sequence[str]) -> Iterator[Any]:
    from hf_compress.architecture.targets import find_targets

    for target in find_targets(model):
        weight = target.parameter
        for level in levels:
            count = round(level * weight.numel())
            smallest = weight.detach().abs().flatten().topk(count, largest=False).indices
            mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
            mask[smallest] = False
            masks = {target.name: mask.view(weight.shape)}
            yield "weights", target.name, level, weight.numel(), _masked(model, masks)


@KINDS.register("ffn")
def _ffn(model: Any, levels: Sequence[float], schemes: Sequence[str]) -> Iterator[Any]:
    yield from _units(model, "ffn", levels)


@KINDS.register("heads")
def _heads(model: Any, levels: Sequence[float], schemes: Sequence[str]) -> Iterator[Any]:
    yield from _units(model, "heads", levels)


@KINDS.register("layers")
def _layers(model: Any, levels: Sequence[float], schemes: Sequence[str]) -> Iterator[Any]:
    from hf_compress.architecture.shrink import shrink

    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    whole = sum(p.numel() for p in model.parameters())
    for layer in range(count if count > 1 else 0):
        try:
            smaller = shrink(model, layers=[n for n in range(count) if n != layer])
        except ArchitectureError:
            return
        size = whole - sum(p.numel() for p in smaller.parameters())
        yield "layers", f"layer.{layer}", 1.0, size, lambda smaller=smaller: contextlib.nullcontext(smaller.eval())


@KINDS.register("quantized")
def _quantized(model: Any, levels: Sequence[float], schemes: Sequence[str]) -> Iterator[Any]:
    from hf_compress.quantization.config import QuantizationConfig
    from hf_compress.quantization.sensitivity import rounded_weights

    for name in schemes:
        for part, weight, rounded in rounded_weights(model, QuantizationConfig(name)):
            yield "quantized", part, name, weight.numel(), _replaced(model, {f"{part}.weight": rounded})


def _units(model: Any, kind: str, levels: Sequence[float]) -> Iterator[Any]:
    from hf_compress.architecture.per_layer import per_layer_groups
    from hf_compress.architecture.units import expand_units, unit_scores

    try:
        groups = per_layer_groups(model, kind)
    except ArchitectureError:
        return
    parameters = dict(model.named_parameters())
    for group in groups:
        scores = unit_scores(group, {s.parameter: parameters[s.parameter].detach() for s in group.slices})
        size = sum(int((~m).sum()) for m in expand_units(group, torch.zeros(group.count), parameters).values())
        # Of few units not every fraction can go.
        for count in dict.fromkeys(round(level * group.count) for level in levels):
            keep = torch.ones(group.count, dtype=torch.bool)
            keep[scores.argsort()[:count]] = False
            masked = _masked(model, expand_units(group, keep, parameters))
            yield from [(kind, group.name, count / group.count, size, masked)] if count else []


def _masked(model: Any, masks: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return _replaced(model, {name: parameters[name].detach() * mask for name, mask in masks.items()})


def _replaced(model: Any, values: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    """Return a context in which the model has other values in some parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))

    @contextlib.contextmanager
    def apply() -> Iterator[Any]:
        before = {name: parameters[name].detach().clone() for name in values}
        try:
            for name, value in values.items():
                parameters[name].data.copy_(value)
            yield model
        finally:
            for name, value in before.items():
                parameters[name].data.copy_(value)

    return apply


def _fingerprint(model: Any, wanted: Sequence[Sequence[torch.Tensor]]) -> str:
    """Return what tells whether results are of the same model and batches: what it predicts on them."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for each in wanted:
        for logits in each:
            digest.update(logits.float().cpu().numpy().round(3).tobytes())
    return digest.hexdigest()[:16]


def _read(output: str | Path | None, mark: str) -> dict[str, Sensitivity]:
    if output is None or not Path(output).is_file():
        return {}
    try:
        data = json.loads(Path(output).read_text(encoding="utf-8"))
        found = [Sensitivity(**row) for row in data["results"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{output} holds no results of a sensitivity: {error}; choose another file") from error
    if data.get("of") != mark:
        raise ConfigError(f"{output} holds results of another model or of other batches; choose another file")
    return {f"{s.kind} {s.part} {s.level}": s for s in found}


def _write(output: str | Path | None, mark: str, done: Mapping[str, Sensitivity]) -> None:
    if output is not None:
        write_json(Path(output), {"of": mark, "results": [asdict(s) for s in done.values()]})
