"""`prune_oneshot`: units and layers removed without training, chosen on some batches and made good by least squares.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.anatomy import Axis, probe
from hf_compress.architecture.attention import head_axes
from hf_compress.architecture.kept import Amount, unit_count
from hf_compress.architecture.shrink import shrink
from hf_compress.architecture.units import UnitGroup, unit_scores
from hf_compress.errors import ConfigError
from hf_compress.pruning.oneshot.importance import UNIT_CRITERIA
from hf_compress.pruning.oneshot.layers import LAYER_CRITERIA, choose_layers
from hf_compress.pruning.oneshot.repair import Regression
from hf_compress.pruning.oneshot.taps import Batch, Tap, evaluating, looking, on_device, summed_loss, taps_of

_KINDS = ("layers", "ffn", "heads")


def prune_oneshot(
    model: Any,
    batches: Sequence[Batch],
    *,
    keep: Mapping[str, Amount],
    criterion: str = "fisher",
    layer_criterion: str = "loss",
    rounds: int = 1,
    repair: float | None = 0.01,
    seed: int = 0,
) -> Any:
    """Return a smaller model without training: unimportant units and layers go, and what read them is fitted anew.

    Args:
        model: a plain transformers model; it is left as it is.
        batches: some inputs, with labels where there are any; a few hundred samples. They are gone through several
            times.
        keep: what stays of "ffn", "heads" and "layers": a number, or a fraction below 1, the same in each layer.
        criterion: of units: fisher, taylor, activation, wanda, entropy, mutual_information, magnitude, random.
        layer_criterion: of layers: loss (greedily the one whose absence costs least), influence, angular.
        rounds: in how many steps the units go, each measured with the others gone, at least 1.
        repair: strength of the ridge of the fit, above 0; None: no fit.
        seed: of draws.

    Raises:
        ConfigError: for unknown names, empty batches, or values out of range.
        ArchitectureError: if the config of the model cannot say that shape.

    Source: Kwon et al. 2022, "A fast post-training pruning framework for transformers".
    """
    _check(batches, keep, criterion, layer_criterion, rounds, repair)
    generator = torch.Generator().manual_seed(seed)
    if keep.get("layers") is not None:
        model = shrink(model, layers=choose_layers(model, batches, keep["layers"], layer_criterion))
    amounts = {name: keep[name] for name in ("ffn", "heads") if keep.get(name) is not None}
    axes = {axis: amount for name, amount in amounts.items() for axis in _axes(model, name)}
    if not axes:
        return model
    kept = _choose(model, batches, axes, criterion, rounds, generator)
    chosen: dict[str, Any] = {
        name: {axis.field: [kept[group].nonzero().flatten() for group in axis.groups] for axis in _axes(model, name)}
        for name in amounts
    }
    smaller = shrink(model, **chosen)
    if repair is not None:
        _repair(model, smaller, batches, kept, repair)
    return smaller


def _check(
    batches: Sequence[Batch], keep: Mapping[str, Amount], criterion: str, layers: str, rounds: int, ridge: float | None
) -> None:
    if not batches:
        raise ConfigError("batches is empty: pass some batches of inputs, on which units are measured")
    unknown = [name for name in keep if name not in _KINDS]
    if unknown or not keep:
        raise ConfigError(f"keep: expected some of {', '.join(_KINDS)}, found {unknown or 'nothing'}")
    if criterion not in ("magnitude", "random"):
        UNIT_CRITERIA.get(criterion)
    if layers != "loss":
        LAYER_CRITERIA.get(layers)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"rounds must be a whole number of at least 1, found {rounds!r}")
    if ridge is not None and not ridge > 0:
        raise ConfigError(f"repair must be above 0, or None for no repair, found {ridge!r}")


def _axes(model: nn.Module, name: str) -> Sequence[Axis]:
    return head_axes(model) if name == "heads" else probe(model).named("ffn")


def _choose(
    model: nn.Module,
    batches: Sequence[Batch],
    axes: Mapping[Axis, Amount],
    criterion: str,
    rounds: int,
    generator: torch.Generator,
) -> dict[UnitGroup, torch.Tensor]:
    """Return for each group which units stay, bool, after `rounds` measurements."""
    groups = [group for axis in axes for group in axis.groups]
    taps = taps_of(model, groups)
    kept = {group: torch.ones(group.count, dtype=torch.bool) for group in groups}
    for step in range(1, rounds + 1):
        for group, each in taps.items():
            for tap in each:
                tap.keep = None if bool(kept[group].all()) else kept[group]
        scores = unit_importance(model, batches, taps, criterion, generator)
        for axis, amount in axes.items():
            goal = unit_count(axis.name, axis, amount)
            # The share that stays falls by the same factor in each round.
            size = round(axis.size * (goal / axis.size) ** (step / rounds)) if step < rounds else goal
            _keep_best(axis, size, scores, kept)
    return kept


def _keep_best(
    axis: Axis, size: int, scores: Mapping[UnitGroup, torch.Tensor], kept: dict[UnitGroup, torch.Tensor]
) -> None:
    total: dict[str, torch.Tensor] = {}
    for group in axis.groups:
        total[group.tie] = total.get(group.tie, torch.zeros(group.count)) + scores[group].cpu()
    for group in axis.groups:
        own = (total[group.tie] if group.tie else scores[group].cpu()).double()
        # What is gone stays gone; among equals the first units stay.
        order = own.masked_fill(~kept[group], -torch.inf).argsort(descending=True, stable=True)
        stays = torch.zeros(group.count, dtype=torch.bool)
        stays[order[:size]] = True
        kept[group] = stays


def unit_importance(
    model: nn.Module,
    batches: Sequence[Batch],
    taps: Mapping[UnitGroup, Sequence[Tap]],
    criterion: str,
    generator: torch.Generator,
) -> dict[UnitGroup, torch.Tensor]:
    """Return the importance of each unit of each group, float32, (units,); higher is more.

    Args:
        model: the model; it runs in eval mode.
        batches: inputs, with labels where there are any; without, losses are of labels drawn from the outputs.
        taps: where each group is read.
        criterion: as in `prune_oneshot`.
        generator: for draws.

    Raises:
        ConfigError: if the batches lack what the criterion needs.
    """
    if criterion == "random":
        return {group: torch.rand(group.count, generator=generator) for group in taps}
    if criterion == "magnitude":
        parameters = dict(model.named_parameters())
        return {group: unit_scores(group, parameters).float() for group in taps}
    kind = UNIT_CRITERIA.get(criterion)
    found = {group: [kind(group.count) for _ in each] for group, each in taps.items()}
    needs_gradients = next(iter(found.values()))[0].needs_gradients
    with evaluating(model), looking(taps), torch.set_grad_enabled(needs_gradients):
        for batch in on_device(model, batches):
            if needs_gradients:
                loss = summed_loss(model, batch, generator)
                loss.backward()
                model.zero_grad(set_to_none=True)
            else:
                output = model(**batch)
                batch = batch if "labels" in batch else {**batch, **_own_classes(output)}
            for group, each in taps.items():
                for tap, measured in zip(each, found[group], strict=True):
                    seen = tap.seen(batch)
                    if seen is not None:
                        _observe(measured, seen, criterion)
    return {group: torch.stack([m.scores().cpu() for m in each]).sum(0) for group, each in found.items()}


def _observe(measured: Any, seen: Any, criterion: str) -> None:
    try:
        measured.observe(seen)
    except ValueError as error:
        raise ConfigError(f"criterion={criterion!r}: {error}; choose another one") from error


def _own_classes(output: Any) -> dict[str, torch.Tensor]:
    logits = getattr(output, "logits", None)
    return {"labels": logits.argmax(-1)} if logits is not None and logits.dim() == 2 else {}


@torch.no_grad()
def _repair(
    full: nn.Module, smaller: nn.Module, batches: Sequence[Batch], kept: Mapping[UnitGroup, torch.Tensor], ridge: float
) -> None:
    """Fit every matrix that reads units anew, in the order in which they are used, to what it made of all of them."""
    readers = {tap.module: None for each in taps_of(full, list(kept)).values() for tap in each}
    names = {module: name for name, module in full.named_modules()}
    with evaluating(full), evaluating(smaller):
        for module in _in_order(full, batches[0], list(readers)):
            other = smaller.get_submodule(names[module])
            weight = other.weight if isinstance(other, nn.Linear) else other.weight.T
            regression = Regression(weight.shape[1], weight.shape[0])
            for batch in on_device(full, batches):
                made, given = _passed(full, module, batch)[1], _passed(smaller, other, batch)[0]
                valid = _valid(batch, made)
                regression.add(given[valid], made[valid])
            new, bias = regression.solve(weight, other.bias, ridge)
            other.weight.copy_(new if isinstance(other, nn.Linear) else new.T)
            if bias is not None:
                other.bias.copy_(bias)


def _valid(batch: Batch, made: torch.Tensor) -> torch.Tensor:
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == made.shape[:-1]:
        return mask.bool()
    return torch.ones(made.shape[:-1], dtype=torch.bool, device=made.device)


class _Reached(Exception):
    """Ends a forward pass."""


def _passed(model: nn.Module, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `module` is given and what it makes; the pass ends there."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        found.append((args[0], output))
        raise _Reached

    handle = module.register_forward_hook(look)
    try:
        with contextlib.suppress(_Reached):
            model(**batch)
    finally:
        handle.remove()
    return found[0]


def _in_order(model: nn.Module, batch: Batch, modules: Sequence[nn.Module]) -> list[nn.Module]:
    order: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda module, *_: order.append(module)) for m in modules]
    try:
        model(**next(on_device(model, [batch])))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))
