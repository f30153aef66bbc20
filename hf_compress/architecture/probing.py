"""Asks a config what it can say about shapes: change one field, build on the meta device, compare.

Level: state. Nothing here knows any architecture; what cannot be built is an answer, not a failure.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_compress.errors import ArchitectureError

Shapes = dict[str, tuple[int, ...]]

# A derived field (None) is asked twice; both values lie far enough apart to see a slope.
_DERIVED_TRIALS = (64, 32)


@dataclass(frozen=True)
class Change:
    """What a config field does to shapes.

    Args:
        field: dotted path of the field; `name[i]` for an element of a list.
        size: its value now (for a field that is None: the value that gives the shapes of now).
        step: how far apart the two builds are, in units of the field, at least 1.
        smaller: parameter shapes of the build with the smaller value.
        larger: parameter shapes of the build with the larger value.
    """

    field: str
    size: int
    step: int
    smaller: Shapes
    larger: Shapes


def build_errors() -> tuple[type[Exception], ...]:
    """Return what configs and constructors raise when they refuse a value."""
    from huggingface_hub.errors import StrictDataclassError

    plain = (ValueError, TypeError, RuntimeError, LookupError, AssertionError, ArithmeticError, AttributeError)
    return (*plain, NameError, StrictDataclassError)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside: odd values are tried on purpose, and their warnings would mislead."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def config_of(model: Any) -> Any:
    """Return the config of a transformers model.

    Raises:
        ArchitectureError: if `model` has none.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise ArchitectureError(
            f"expected a transformers model with a config, found {type(model).__name__}; a plain module has no config "
            "that could say its smaller shape: make it a PreTrainedModel whose config has its sizes, or prune single "
            "weights, N:M, blocks, rows or columns"
        )
    return config


def build(model_class: type, config: Any, device: torch.device | str = "meta") -> Any:
    """Return `model_class(config)` on `device` with weights tied but not initialised; the config is copied."""
    from transformers.initialization import no_init_weights

    # fork_rng: constructors may draw numbers, and the caller's random stream must not move.
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device), no_init_weights():
        model = model_class(copy.deepcopy(config))
        if hasattr(model, "tie_weights"):
            model.tie_weights()
    return model


def shapes_of(model: nn.Module) -> Shapes:
    """Return name -> shape of every parameter, tied ones once."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of parameters in `shapes`."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def read_field(config: Any, path: str) -> Any:
    """Return the value at a dotted path such as `text_config.depths[1]`."""
    return _walk(config, _parts(path))


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """Return a deep copy of `config` in which each dotted path has the given value."""
    config = copy.deepcopy(config)
    for path, value in values.items():
        set_field(config, path, value)
    return config


def set_field(config: Any, path: str, value: Any) -> None:
    """Set a dotted path in `config`, in place; a list is replaced, never changed."""
    parts = _parts(path)
    holder_path, last = parts[:-1], parts[-1]
    if isinstance(last, int):
        holder_path, name = parts[:-2], str(parts[-2])
        holder = _walk(config, holder_path)
        old = getattr(holder, name)
        setattr(holder, name, type(old)([*old[:last], value, *old[last + 1 :]]))
        return
    setattr(_walk(config, holder_path), last, value)


def list_fields(config: Any, field: str, length: int) -> dict[str, list | tuple]:
    """Return path -> value of the lists of `length` elements that stand beside `field` in its config."""
    holder, _, _ = field.rpartition(".")
    prefix = f"{holder}." if holder else ""
    found = vars(_walk(config, _parts(holder) if holder else []))
    return {
        prefix + name: value
        for name, value in found.items()
        if isinstance(value, (list, tuple)) and len(value) == length and not name.startswith("_")
    }


def number_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Yield (path, value) of each field that is a whole number or None, in sub-configs and lists too."""
    for name, value in vars(config).items():
        path = prefix + name
        if name.startswith("_") or isinstance(value, bool):
            continue
        if value is None or isinstance(value, int):
            yield path, value
        elif hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from number_fields(value, f"{path}.")
        elif isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            yield from ((f"{path}[{i}]", v) for i, v in enumerate(value))


def ask(model_class: type, config: Any, field: str, value: int | None, base: Shapes) -> Change | str:
    """Return what `field` does to the shapes, or a sentence that says why it does nothing.

    Args:
        model_class: class of the model.
        config: its config, left as it is.
        field: dotted path.
        value: its value now.
        base: parameter shapes that `config` gives.
    """
    if value is None:
        return _ask_derived(model_class, config, field, base)
    reason = "has no other legal value"
    for trial in dict.fromkeys((value - 1, value + 1, value // 2, 2 * value)):
        if trial < 1 or trial == value:
            continue
        shapes = _try(model_class, config, field, trial)
        if isinstance(shapes, str):
            reason = f"refuses {trial} instead of {value}: {shapes}"
        elif shapes == base:
            return "changes no shape"
        else:
            smaller, larger = (shapes, base) if trial < value else (base, shapes)
            return Change(field, value, abs(trial - value), smaller, larger)
    return reason


def _ask_derived(model_class: type, config: Any, field: str, base: Shapes) -> Change | str:
    larger = _try(model_class, config, field, _DERIVED_TRIALS[0])
    if isinstance(larger, str) or larger == base:
        return "changes no shape"
    smaller = _try(model_class, config, field, _DERIVED_TRIALS[1])
    if isinstance(smaller, str) or smaller.keys() != base.keys() or larger.keys() != base.keys():
        return "is derived by the model in a way that no number expresses"
    step = _DERIVED_TRIALS[0] - _DERIVED_TRIALS[1]
    # Each changed dimension says which value of the field its present size stands for.
    sizes = {
        now * step / (high - low)
        for name in base
        for now, low, high in zip(base[name], smaller[name], larger[name], strict=True)
        if high != low
    }
    size = int(next(iter(sizes), 0))
    if sizes != {size} or size < 2 or _try(model_class, config, field, size) != base:
        return "is derived by the model in a way that no number expresses"
    return ask(model_class, with_fields(config, {field: size}), field, size, base)


def try_shapes(model_class: type, config: Any, is_reloaded: bool = False) -> Shapes | str:
    """Return the parameter shapes that `config` gives, or the reason why it builds nothing.

    Args:
        model_class: class of the model.
        config: its config, left as it is.
        is_reloaded: ask what a copy gives that was saved and read again.
    """
    try:
        if is_reloaded:
            with quiet():
                config = type(config).from_dict(config.to_dict())
        return shapes_of(build(model_class, config))
    except build_errors() as error:
        return str(error).strip().split("\n")[0] or type(error).__name__


def _try(model_class: type, config: Any, field: str, value: int) -> Shapes | str:
    return try_fields(model_class, config, {field: value})


def try_fields(model_class: type, config: Any, values: Mapping[str, Any], is_reloaded: bool = False) -> Shapes | str:
    """Return the parameter shapes that `config` gives with other values, or why it builds nothing."""
    try:
        changed = with_fields(config, values)
    except build_errors() as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return try_shapes(model_class, changed, is_reloaded)


def follows(config: Any, path: str, field: str, value: int) -> bool:
    """Whether the list at `path`, left to the config to fill in, gets `value` elements when `field` is `value`."""
    holder_path, _, name = path.rpartition(".")
    holder = read_field(config, holder_path) if holder_path else config
    data = {**holder.to_dict(), field.rpartition(".")[2]: value}
    # Lists of other kinds of layers may be as long, and the config refuses one that stays so.
    for beside in list_fields(config, field, len(read_field(config, path))):
        data.pop(beside.rpartition(".")[2], None)
    try:
        with quiet():
            filled = getattr(type(holder).from_dict(data), name, None)
    except build_errors():
        return False
    return isinstance(filled, (list, tuple)) and len(filled) == value


def base_shapes(model_class: type, config: Any) -> Shapes:
    """Return the parameter shapes that `config` gives.

    Raises:
        ArchitectureError: if the class cannot be built from its own config.
    """
    try:
        return shapes_of(build(model_class, config))
    except build_errors() as error:
        raise ArchitectureError(
            f"expected {model_class.__name__} to build from its config alone, found: {error}; use a class from "
            "transformers and the config it was made with"
        ) from error


def _parts(path: str) -> list[str | int]:
    return [int(p[1:-1]) if p.startswith("[") else p for p in re.findall(r"\[\d+\]|[^.\[]+", path)]


def _walk(config: Any, parts: list[str | int]) -> Any:
    for part in parts:
        config = config[part] if isinstance(part, int) else getattr(config, part)
    return config
