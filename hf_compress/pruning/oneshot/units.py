"""Units and layers removed without training, chosen on some batches and made good by least squares.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.anatomy import Axis, probe
from hf_compress.architecture.attention import head_axes
from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.kept import Amount, unit_count
from hf_compress.architecture.modes import outside_training
from hf_compress.architecture.per_layer import cut_per_layer, per_layer_groups
from hf_compress.architecture.shrink import shrink
from hf_compress.architecture.units import UnitGroup, unit_scores
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError, ConfigError, DataError
from hf_compress.pruning.oneshot.config import OneShotConfig
from hf_compress.pruning.oneshot.importance import UNIT_CRITERIA
from hf_compress.pruning.oneshot.layers import LAYER_CRITERIA, choose_layers
from hf_compress.pruning.oneshot.refit import refit
from hf_compress.pruning.oneshot.taps import Batch, Tap, looking, on_device, summed_loss, taps_of

_WIDTHS = ("hidden", "filters")
_CRITERION = "fisher"
_LEAST_NEURONS = 0.05
_WITHOUT_DATA = ("magnitude", "random")


def prune_units(model: Any, batches: Sequence[Batch], config: OneShotConfig) -> Any:
    """Return a smaller model without training: unimportant units and layers go, and what read them is fitted anew.

    Args:
        model: a plain transformers model; it is left as it is.
        batches: some inputs, with labels where there are any; a few hundred samples. They are gone through several
            times.
        config: what stays (`keep`), by which criteria.

    Raises:
        ConfigError: for unknown names or empty batches.
        ArchitectureError: if the config of the model cannot say that shape.

    Source: Kwon et al. 2022, "A fast post-training pruning framework for transformers".
    """
    check_units(config)
    if not batches:
        raise DataError("batches is empty: pass some batches of inputs, on which units are measured")
    batches = [batch if "labels" in batch else without_labels(model, batch) for batch in batches]
    keep, criterion = config.keep, config.criterion or _CRITERION
    generator = torch.Generator().manual_seed(0)
    if keep.get("layers") is not None:
        model = shrink(model, layers=choose_layers(model, batches, keep["layers"], config.layer_criterion))
    chosen: dict[str, Any]
    # Neurons of experts have one number in the config, so they go like channels.
    is_wide = config.layout != "per_layer" and not probe(model).named("ffn")
    widths, parts = (("ffn", *_WIDTHS), ("heads",)) if is_wide else (_WIDTHS, ("ffn", "heads"))
    for name in widths:
        if keep.get(name) is not None:
            chosen = {name: _channels(model, batches, name, keep[name], criterion, generator)}
            model = shrink(model, **chosen)
    amounts = {name: keep[name] for name in parts if keep.get(name) is not None}
    if not amounts:
        return model
    rows = {name: _rows(model, name, amount, config.layout) for name, amount in amounts.items()}
    kept = _choose(
        model, batches, [row for each in rows.values() for row in each], criterion, config.rounds, generator
    )
    if config.layout == "per_layer":
        smaller = cut_per_layer(model, {group: keep.nonzero().flatten() for group, keep in kept.items()})
    else:
        chosen = {
            name: {row.field: [kept[group].nonzero().flatten() for group in row.groups] for row in each}
            for name, each in rows.items()
        }
        smaller = shrink(model, **chosen)
    if config.repair is not None:
        refit(model, smaller, batches, kept, config.repair)
    return smaller


def check_units(config: OneShotConfig) -> None:
    """Make sure that there are such criteria of units and layers.

    Raises:
        ConfigError: listing what exists.
    """
    check_criterion(config.criterion or _CRITERION)
    if config.layer_criterion != "loss":
        LAYER_CRITERIA.get(config.layer_criterion)


def check_criterion(name: str) -> None:
    """Make sure that there is such a criterion of units.

    Raises:
        ConfigError: listing what exists.
    """
    if name not in _WITHOUT_DATA:
        UNIT_CRITERIA.get(name)


@dataclass(frozen=True)
class _Row:
    """Units that compete: of one axis, with as many in each group (`floor` None), or over all groups.

    Args:
        field: the config field, for a uniform layout.
        groups: the units.
        size: of a uniform layout the units of each group, otherwise of all together.
        goal: how many of these stay.
        floor: the least share of each group, 0-1; None for a uniform layout.
    """

    field: str
    groups: tuple[UnitGroup, ...]
    size: int
    goal: int
    floor: float | None = None


def _channels(
    model: nn.Module,
    batches: Sequence[Batch],
    name: str,
    amount: Amount,
    criterion: str,
    generator: torch.Generator,
) -> dict[str, list[int]]:
    """Return the channels that stay, by config field; what follows from them is chosen by `shrink`."""
    found, reasons = find_width_axes(model)
    axes = [axis for axis in found if axis.name == name]
    if not axes:
        why = "; ".join(f"{field}: {reason}" for field, reason in reasons.items()) or "no config field says one"
        raise ArchitectureError(f"{name}: expected channels that can be removed, found none: {why}")
    taps = {} if criterion in _WITHOUT_DATA else taps_of(model, [axis.groups[0] for axis in axes])
    taps = taps or {axis.groups[0]: [] for axis in axes}
    scores = unit_importance(model, batches, taps, criterion, generator)
    chosen = {}
    for axis in axes:
        group, number = axis.groups[0], axis.counts(unit_count(name, axis, amount))[0]
        blocks = scores[group].cpu().view(group.blocks, -1)
        kept = torch.cat([_best(block, number // group.blocks) for block in blocks])
        chosen[axis.field] = kept.nonzero().flatten().tolist()
    return chosen


def _rows(model: nn.Module, name: str, amount: Amount, layout: str) -> list[_Row]:
    if layout == "per_layer":
        groups = tuple(per_layer_groups(model, name))
        size = sum(group.count for group in groups)
        goal = unit_count(name, Axis(name, name, size), amount)
        return [_Row("", groups, size, goal, 0.0 if name == "heads" else _LEAST_NEURONS)]
    axes = head_axes(model) if name == "heads" else probe(model).named("ffn")
    return [_Row(axis.field, axis.groups, axis.size, unit_count(name, axis, amount)) for axis in axes]


def _choose(
    model: nn.Module,
    batches: Sequence[Batch],
    rows: Sequence[_Row],
    criterion: str,
    rounds: int,
    generator: torch.Generator,
) -> dict[UnitGroup, torch.Tensor]:
    """Return for each group which units stay, bool, after `rounds` measurements."""
    groups = [group for row in rows for group in row.groups]
    taps = taps_of(model, groups)
    kept = {group: torch.ones(group.count, dtype=torch.bool) for group in groups}
    for step in range(1, rounds + 1):
        for group, each in taps.items():
            for tap in each:
                tap.keep = None if bool(kept[group].all()) else kept[group]
        scores = unit_importance(model, batches, taps, criterion, generator)
        for row in rows:
            # The share that stays falls by the same factor in each round.
            size = round(row.size * (row.goal / row.size) ** (step / rounds)) if step < rounds else row.goal
            _keep_best(row, size, scores, kept)
    return kept


def _keep_best(
    row: _Row, size: int, scores: Mapping[UnitGroup, torch.Tensor], kept: dict[UnitGroup, torch.Tensor]
) -> None:
    own = {group: scores[group].cpu().double() for group in row.groups}
    total: dict[str, torch.Tensor] = {}
    for group, each in own.items():
        total[group.tie] = total.get(group.tie, torch.zeros_like(each)) + each if group.tie else each
    # What is gone stays gone.
    own = {g: (total[g.tie] if g.tie else each).masked_fill(~kept[g], -torch.inf) for g, each in own.items()}
    if row.floor is None:
        kept.update({group: _best(each, size) for group, each in own.items()})
        return
    # The best of each group first, so that none is emptied by accident.
    raised = [each.masked_fill(_best(each, max(1, round(row.floor * len(each)))), torch.inf) for each in own.values()]
    stays = _best(torch.cat(raised), max(size, sum(int(torch.isposinf(each).sum()) for each in raised)))
    kept.update(zip(own, stays.split([len(each) for each in raised]), strict=True))


def _best(scores: torch.Tensor, number: int) -> torch.Tensor:
    # Among equals the first units stay.
    stays = torch.zeros(len(scores), dtype=torch.bool)
    stays[scores.argsort(descending=True, stable=True)[:number]] = True
    return stays


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
        criterion: as in `OneShotConfig`.
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
    with outside_training(model), looking(taps), torch.set_grad_enabled(needs_gradients):
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
