"""The schemes of quantization by name: what they need, how they load, and how they round.

Level: state. A new scheme is one decorated function beside its kin; `quantize` and training find it by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_compress.errors import QuantizationError
from hf_compress.imports import require
from hf_compress.quantization.config import QuantizationConfig
from hf_compress.registry import Registry

# What every scheme takes.
_COMMON = frozenset({"scheme", "skip_modules", "dtype", "aware", "ranges", "activations", "freeze"})


@dataclass(frozen=True)
class Scheme:
    """A way to store weights that stock transformers loads.

    Args:
        settings: (config, modules to skip, calibration batches) -> transformers' quantization config.
        bits: (config) -> stored for each weight, scales included.
        packages: import names of what it needs.
        options: fields of `QuantizationConfig` that it takes besides the common ones.
        rounds: (weight, config) -> the numbers that its codes stand for; None where training cannot simulate it.
        unfit: (layer, config) -> why this layer must be left alone, or nothing.
        refuses: (model) -> why transformers could not load it with this scheme, or nothing.
        cannot_run: (model, quantized or not, inputs) -> its layers that fail in a forward pass then, with the reason.
        group: (config) -> neighbouring inputs that share a scale, None for all of an output.
        levels: where all of an output share 8-bit codes: what their largest absolute value is divided by.
        activations: how it rounds inputs, as in `QuantizationConfig.activations`.
        is_calibrated: whether it needs samples.
    """

    settings: Callable[[QuantizationConfig, Sequence[str], Sequence[Any]], Any]
    bits: Callable[[QuantizationConfig], float]
    packages: tuple[str, ...]
    options: frozenset[str] = frozenset()
    rounds: Callable[[torch.Tensor, QuantizationConfig], torch.Tensor] | None = None
    unfit: Callable[[nn.Module, QuantizationConfig], str] = field(default=lambda module, config: "")
    refuses: Callable[[nn.Module], str] = lambda model: ""
    cannot_run: Callable[[Any, Mapping[str, Any]], dict[str, str]] = lambda model, inputs: {}
    group: Callable[[QuantizationConfig], int | None] = lambda config: None
    levels: float | None = None
    activations: str = "none"
    is_calibrated: bool = False

    def __call__(self, config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any] = ()) -> Any:
        """Return transformers' quantization config."""
        return self.settings(config, skip, batches)


SCHEMES: Registry[Scheme] = Registry("quantization scheme")


def is_transposed(module: nn.Module) -> bool:
    """Say whether `module` is a linear layer whose weight is (inputs, outputs), as in GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def linear_inputs(module: Any) -> int:
    """Return the number of inputs of a linear layer."""
    return module.weight.shape[0 if is_transposed(module) else -1]


def scheme_of(config: QuantizationConfig) -> Scheme:
    """Return the scheme that `config` names, once it takes all options that were set.

    Raises:
        ConfigError: if there is no such scheme.
        QuantizationError: if an option is not for it.
    """
    # Each file registers its schemes when it is imported; none of them imports its package then.
    from hf_compress.quantization import bnb, gptq, torchao  # noqa: F401

    scheme = SCHEMES.get(config.scheme)
    for option in dataclasses.fields(QuantizationConfig):
        is_set = getattr(config, option.name) != option.default
        if is_set and option.name not in _COMMON | scheme.options:
            takes = ", ".join(sorted(scheme.options)) or "no options of its own"
            raise QuantizationError(f"{option.name} is not for {config.scheme}, which takes: {takes}")
    if config.aware and scheme.rounds is None:
        raise QuantizationError(f"training cannot simulate {config.scheme}; quantize with it after training")
    if config.aware and scheme.activations == "none" and config.activations == "dynamic":
        raise QuantizationError(
            f"{config.scheme} does not round activations; take torchao-int8-dynamic, or activations='observed' and "
            "export"
        )
    return scheme


def usable_scheme(config: QuantizationConfig) -> Scheme:
    """Return the scheme that `config` names, once its packages are here too.

    Raises:
        ConfigError, QuantizationError: as `scheme_of`.
        MissingDependencyError: with the line that installs what is missing.
    """
    scheme = scheme_of(config)
    for package in scheme.packages:
        require(package, f"the quantization scheme {config.scheme}")
    return scheme
