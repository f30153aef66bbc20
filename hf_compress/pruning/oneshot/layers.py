"""How important whole layers are, on some batches, and which ones stay.

Level: state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.architecture.anatomy import Axis
from hf_compress.architecture.kept import Amount, unit_count
from hf_compress.architecture.modes import outside_training
from hf_compress.architecture.shrink import removable_layers
from hf_compress.architecture.verify import hand_on
from hf_compress.errors import ArchitectureError
from hf_compress.pruning.oneshot.taps import Batch, on_device
from hf_compress.registry import Registry

# Takes (input, output) of a layer, (tokens, width) each, and returns the change of each token, (tokens,).
LAYER_CRITERIA: Registry[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = Registry("criterion of layers")


@LAYER_CRITERIA.register("influence")
def influence(given: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """1 - cosine of input and output, 0-2.

    Source: Men et al. 2024, "ShortGPT" (block influence).
    """
    return 1 - F.cosine_similarity(given, made, dim=-1)


@LAYER_CRITERIA.register("angular")
def angular(given: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Angle between input and output over pi, 0-1.

    Source: Gromov et al. 2024, "The unreasonable ineffectiveness of the deeper layers", equation 5.
    """
    return F.cosine_similarity(given, made, dim=-1).clamp(-1, 1).acos() / math.pi


def choose_layers(model: Any, batches: Sequence[Batch], amount: Amount, criterion: str) -> dict[str, list[int]]:
    """Return the indices of the layers that stay, for each stack of more than one, by config field.

    Args:
        model: a transformers model.
        batches: inputs, with labels where there are any.
        amount: how many layers stay, or the fraction, or a dict from config field to either.
        criterion: "loss", or a name in `LAYER_CRITERIA`.

    Raises:
        ArchitectureError: if fewer can go than shall.
    """
    found: dict[str, list[int]] = {}
    for axis, removable in removable_layers(model).items():
        if axis.size < 2 or (isinstance(amount, Mapping) and axis.field not in amount):
            continue
        number = unit_count("layers", axis, amount[axis.field] if isinstance(amount, Mapping) else amount)
        free = [i for i, can_go in enumerate(removable) if can_go]
        if axis.size - number > len(free):
            raise ArchitectureError(
                f"layers: expected to keep at least {axis.size - len(free)} of {axis.size} ({axis.field}), since the "
                f"others cannot go, found {number}"
            )
        choose = _greedily if criterion == "loss" else _by_change
        found[axis.field] = choose(model, batches, axis, number, free, criterion)
    return found


def _by_change(
    model: nn.Module, batches: Sequence[Batch], axis: Axis, number: int, free: list[int], criterion: str
) -> list[int]:
    change = layer_changes(model, batches, axis, criterion)
    gone = sorted(free, key=lambda i: (change[i], i))[: axis.size - number]
    return [i for i in range(axis.size) if i not in gone]


@torch.no_grad()
def layer_changes(model: nn.Module, batches: Sequence[Batch], axis: Axis, criterion: str) -> list[float]:
    """Return the mean change that each layer of a stack makes to its tokens, padding left out."""
    measure = LAYER_CRITERIA.get(criterion)
    sums, counts = [0.0] * axis.size, [0] * axis.size
    batch: Batch = {}

    def hook(layer: int) -> Any:
        def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            mask = batch.get("attention_mask")
            if mask is not None and mask.shape == given.shape[:-1]:
                given, made = given[mask.bool()], made[mask.bool()]
            change = measure(given.float(), made.float())
            sums[layer] += float(change.sum())
            counts[layer] += change.numel()

        return look

    handles = [
        model.get_submodule(f"{prefix}{i}").register_forward_hook(hook(i), with_kwargs=True)
        for prefix in axis.stacks
        for i in range(axis.size)
    ]
    try:
        with outside_training(model):
            for batch in on_device(model, batches):
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _greedily(
    model: nn.Module, batches: Sequence[Batch], axis: Axis, number: int, free: list[int], criterion: str
) -> list[int]:
    gone: list[int] = []
    expected = _outputs(model, batches)
    while axis.size - len(gone) > number:
        rest = [i for i in free if i not in gone]
        costs = {i: _loss_without(model, batches, axis, [*gone, i], expected) for i in rest}
        gone.append(min(costs, key=lambda i: (costs[i], i)))
    return [i for i in range(axis.size) if i not in gone]


@torch.no_grad()
def _outputs(model: nn.Module, batches: Sequence[Batch]) -> list[torch.Tensor]:
    with outside_training(model):
        return [_main(model(**batch)) for batch in on_device(model, batches)]


def _main(output: Any) -> torch.Tensor:
    """Return the logits, or the first tensor there is."""
    values = [v for k, v in output.items() if k.endswith("logits") and isinstance(v, torch.Tensor)]
    values += [v for k, v in output.items() if k != "loss" and isinstance(v, torch.Tensor) and v.is_floating_point()]
    return values[0]


@torch.no_grad()
def _loss_without(
    model: nn.Module, batches: Sequence[Batch], axis: Axis, gone: Sequence[int], expected: Sequence[torch.Tensor]
) -> float:
    """Return the mean loss without some layers; without labels the squared change of the outputs."""
    total, rows = 0.0, 0
    with outside_training(model), _without(model, axis, gone):
        for batch, before in zip(on_device(model, batches), expected, strict=True):
            output, count = model(**batch), len(next(iter(batch.values())))
            loss = getattr(output, "loss", None)
            total += count * float((_main(output) - before).square().mean() if loss is None else loss)
            rows += count
    return total / rows


@contextlib.contextmanager
def _without(model: nn.Module, axis: Axis, gone: Sequence[int]) -> Iterator[None]:
    handles = [
        model.get_submodule(f"{prefix}{i}").register_forward_hook(hand_on, with_kwargs=True)
        for prefix in axis.stacks
        for i in gone
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
