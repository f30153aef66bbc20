"""`make_student`: a student cut from its teacher, so that it starts with what the teacher knows.

Level: state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.architecture.anatomy import probe
from hf_compress.architecture.kept import Amount, evenly_spaced
from hf_compress.architecture.modes import outside_training
from hf_compress.architecture.shrink import shrink
from hf_compress.distillation.capture import seen_in
from hf_compress.distillation.reduce import token_mask
from hf_compress.distillation.teacher import load_teacher_model
from hf_compress.errors import ArchitectureError, ConfigError
from hf_compress.registry import Registry

# Takes (number to keep, number there is, importance of each or None) and returns indices, ascending.
KEEP: Registry[Callable[[int, int, Sequence[float] | None], list[int]]] = Registry("keep")


@KEEP.register("uniform")
def uniform(number: int, size: int, importance: Sequence[float] | None = None) -> list[int]:
    """Keep layers at equal distances, first and last included; of a fine-tuned teacher the usual choice."""
    return evenly_spaced(number, size)


@KEEP.register("first")
def first(number: int, size: int, importance: Sequence[float] | None = None) -> list[int]:
    """Keep the lowest layers; for a teacher that is not fine-tuned yet.

    Source: Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models".
    """
    return list(range(number))


@KEEP.register("last")
def last(number: int, size: int, importance: Sequence[float] | None = None) -> list[int]:
    """Keep the highest layers."""
    return list(range(size - number, size))


@KEEP.register("importance")
def important(number: int, size: int, importance: Sequence[float] | None = None) -> list[int]:
    """Keep the layers that change their input most; of equal ones the higher."""
    if importance is None:
        raise ConfigError("keep='importance' measures the layers on data: pass batches= some batches of inputs")
    ranked = sorted(range(size), key=lambda i: (importance[i], i), reverse=True)
    return sorted(ranked[:number])


def make_student(
    teacher: Any,
    *,
    layers: Amount = None,
    keep: str = "uniform",
    ffn: Amount = None,
    heads: Amount = None,
    hidden: Amount = None,
    filters: Amount = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
) -> Any:
    """Return a smaller copy of `teacher`, a plain model of the same class.

    Args:
        teacher: a transformers model, a folder or a Hub id; it is left as it is.
        layers: how many layers stay, their indices, or for two stacks a dict from config field to either.
        keep: which ones stay of a number: uniform, first, last, importance.
        ffn: feed-forward units that stay in each layer, as in `shrink`; None: all.
        heads: key-value heads that stay in each layer, as in `shrink`; None: all.
        hidden: channels of the hidden width that stay, as in `shrink`; None: all.
        filters: channels of the stages that stay, as in `shrink`; None: all.
        batches: inputs on which importance is measured.

    Returns:
        The student. Its attribute `kept_layers` has the indices of the teacher's layers that were kept, for
        `DistillationConfig(layer_map="kept")`; it is not saved with the model.

    Raises:
        ConfigError: for an unknown `keep`, or batches that it lacks.
        ArchitectureError: if the config cannot say that shape.
    """
    model = load_teacher_model(teacher) if isinstance(teacher, (str, Path)) else teacher
    choose = KEEP.get(keep)
    axes = {axis.field: axis.size for axis in probe(model).named("layers")}
    importance = layer_importance(model, batches) if batches is not None else None

    def indices(amount: Amount, size: int) -> Amount:
        if isinstance(amount, bool) or not isinstance(amount, int) or not 1 <= amount <= size:
            # Lists are taken as they are, and what is neither is refused by `shrink`.
            return amount
        return choose(amount, size, importance)

    if isinstance(layers, Mapping):
        chosen: Amount = {name: indices(n, axes[name]) if name in axes else n for name, n in layers.items()}
    else:
        chosen = indices(layers, next(iter(axes.values()))) if len(axes) == 1 else layers
    widths = _all_units(model) if ffn is None else ffn
    student = shrink(model, layers=chosen, ffn=widths, heads=heads, hidden=hidden, filters=filters)
    if isinstance(chosen, list):
        student.kept_layers = list(chosen)
    return student


@torch.no_grad()
def layer_importance(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return for each layer the mean of 1 - cosine of its input and output over the tokens of `batches`, 0-2.

    Args:
        model: a transformers model with one stack of layers; it runs in eval mode.
        batches: inputs of the model; labels are not looked at.

    Raises:
        ConfigError: if there is no batch.
        ArchitectureError: if the model has two stacks or returns no hidden states.

    Source: Men et al. 2024, "ShortGPT" (block influence).
    """
    sums, count = torch.zeros(0, dtype=torch.float64), 0
    device = next(model.parameters()).device
    with outside_training(model):
        for batch in batches:
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            states = seen_in(model(**inputs, output_hidden_states=True), {}).hidden.get("")
            if states is None:
                raise ArchitectureError(
                    f"{type(model).__name__} has no single stack of layers; name the layers instead"
                )
            mask, _ = token_mask(inputs, "", states[0].shape[1])
            changes = [
                1 - F.cosine_similarity(a[mask], b[mask], dim=-1) for a, b in zip(states, states[1:], strict=False)
            ]
            found = torch.stack([c.double().sum() for c in changes]).cpu()
            sums, count = (sums if len(sums) else torch.zeros_like(found)) + found, count + int(mask.sum())
    if count == 0:
        raise ConfigError("batches is empty: pass some batches of inputs, on which the layers are measured")
    return (sums / count).tolist()


def _all_units(model: Any) -> Amount:
    """Return what keeps every feed-forward unit, also those that are zero; None where there are none."""
    axes = list(probe(model).named("ffn"))
    return {axis.field: axis.size for axis in axes} or None
