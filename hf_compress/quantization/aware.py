"""Training with rounded weights: each linear layer multiplies what its codes will stand for.

Level: state. Parameters stay plain: only `forward` of the layers changes, until `detach`.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_compress.errors import QuantizationError
from hf_compress.quantization.api import layers_by_fit
from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.rounding import affine, round_range, round_tokens, straight_through
from hf_compress.quantization.schemes import Scheme, is_transposed, scheme_of

# Momentum of observed ranges (arXiv:1712.05877, section 3.1), and where sigmoid of the learned share begins
# (OmniQuant, arXiv:2308.13137, section 3.3): 0.98 of the largest weight.
_MOMENTUM, _START = 0.99, 4.0
_ROUNDING = "_hf_compress_rounding"


class LayerRounding(nn.Module):
    """What is learnt or observed of one layer beside its weight.

    Args:
        weight: (outputs, inputs).
        scheme: how it is rounded.
        config: options of it.
    """

    def __init__(self, weight: torch.Tensor, scheme: Scheme, config: QuantizationConfig) -> None:
        super().__init__()
        self.scheme, self.config = scheme, config
        self.group = scheme.group(config)
        self.share: nn.Parameter | None = None
        if config.ranges == "learned":
            shape = (weight.shape[0], weight.shape[1] // (self.group or weight.shape[1]), 1)
            self.share = nn.Parameter(torch.full(shape, _START, device=weight.device))
        if config.activations == "observed":
            # Until something was seen the range is empty.
            self.register_buffer("low", torch.tensor(torch.inf, device=weight.device))
            self.register_buffer("high", torch.tensor(-torch.inf, device=weight.device))
            self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight, (outputs, inputs), with a straight-through gradient."""
        clipped = self.clip(weight)
        # The largest weights of a row set its scale, so nothing else lies outside of what the codes reach.
        return straight_through(clipped, self.scheme.rounds(clipped.detach(), self.config))  # type: ignore[misc]

    def clip(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight within the learned share of its largest absolute value (PACT, arXiv:1805.06085, eq. 1)."""
        if self.share is None:
            return weight
        grouped = weight.reshape(weight.shape[0], -1, self.group or weight.shape[1])
        bound = self.share.sigmoid() * grouped.detach().abs().amax(-1, keepdim=True)
        return torch.minimum(torch.maximum(grouped, -bound), bound).reshape(weight.shape).to(weight.dtype)

    def inputs(self, inputs: torch.Tensor, is_training: bool) -> torch.Tensor:
        """Return the inputs as 8 bits would give them, if activations are rounded."""
        kind = self.config.activations if self.config.activations != "none" else self.scheme.activations
        if kind == "dynamic":
            return straight_through(inputs, round_tokens(inputs.detach()))
        if kind != "observed":
            return inputs
        low, high = inputs.detach().amin().float(), inputs.detach().amax().float()
        if is_training:
            seen = self.seen or (low, high)
            self.seen = torch.minimum(seen[0], low), torch.maximum(seen[1], high)
        if not bool(self.low <= self.high):
            return inputs
        rounded = round_range(inputs.detach(), self.low, self.high).to(inputs.dtype)
        # What was clipped learns nothing.
        inside = inputs.clamp(self.low.to(inputs.dtype), self.high.to(inputs.dtype))
        return straight_through(inside, rounded)

    def observe(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Move the range towards what one step saw."""
        is_first = not bool(self.low <= self.high)
        for name, value in (("low", low), ("high", high)):
            old = getattr(self, name)
            getattr(self, name).copy_(value if is_first else _MOMENTUM * old + (1 - _MOMENTUM) * value)


class FakeQuantizer:
    """Rounds the linear layers of a model in its forward passes, as a scheme will store them.

    Args:
        config: with `aware=True`.

    Raises:
        ConfigError: if there is no such scheme.
        QuantizationError: if training cannot simulate it, or an option is not for it.
    """

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config
        self.scheme = scheme_of(config)
        self.layers = nn.ModuleDict()
        self._modules: dict[str, nn.Module] = {}
        self._is_frozen = False

    def attach(self, model: nn.Module) -> None:
        """Round the linear layers of `model` from now on; its head and `skip_modules` are left alone.

        Raises:
            QuantizationError: if there is none, or `skip_modules` matches nothing.
        """
        for name, module in layers_by_fit(model, self.config, self.scheme)[0].items():
            key = name.replace(".", "/")
            self._modules[key] = module
            self.layers[key] = LayerRounding(_oriented(module), self.scheme, self.config)
            module.forward = types.MethodType(_forward, module)
            # Not an attribute that torch sees: it would be saved with the model.
            module.__dict__[_ROUNDING] = self.layers[key]
        if not self._modules:
            raise QuantizationError(
                f"{type(model).__name__} has no linear layer that {self.config.scheme} can round besides its output "
                "head and the skipped modules"
            )

    def detach(self) -> None:
        """Give the layers their own `forward` back."""
        for module in self._modules.values():
            module.__dict__.pop("forward", None)
            module.__dict__.pop(_ROUNDING, None)

    def step(self, progress: float, reduce: Any = None) -> None:
        """Take in the ranges that one optimizer step saw, unless they are frozen.

        Args:
            progress: fraction of training that is done.
            reduce: (tensor of lows, tensor of highs) -> the same over all processes; None for one process.
        """
        if progress >= self.config.freeze and not self._is_frozen:
            self._is_frozen = True
            for parameter in self.layers.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        watching = [layer for layer in self.layers.values() if getattr(layer, "seen", None) is not None]
        if not watching:
            return
        lows = torch.stack([layer.seen[0] for layer in watching])
        highs = torch.stack([layer.seen[1] for layer in watching])
        for layer in watching:
            layer.seen = None
        if self._is_frozen:
            return
        lows, highs = (lows, highs) if reduce is None else reduce(lows, highs)
        for layer, low, high in zip(watching, lows, highs, strict=True):
            layer.observe(low, high)

    @torch.no_grad()
    def fold(self) -> None:
        """Clip the weights to their learned shares for good, so that a scheme finds the same scales in them."""
        for key, layer in self.layers.items():
            if layer.share is not None:
                weight = _oriented(self._modules[key])
                weight.copy_(layer.clip(weight))
                layer.share = None


def _oriented(module: nn.Module) -> torch.Tensor:
    """Return a view of the weight as (outputs, inputs)."""
    return module.weight.T if is_transposed(module) else module.weight


def _forward(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    rounding: LayerRounding = module.__dict__[_ROUNDING]
    weight = rounding.weight(_oriented(module))
    return nn.functional.linear(rounding.inputs(inputs, module.training), weight, module.bias)


def _rounding_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if _ROUNDING in module.__dict__]


@contextlib.contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Let layers that train with rounded weights compute from the weights as they are, to compare these."""
    changed = _rounding_layers(model)
    try:
        for module in changed:
            del module.forward
        yield
    finally:
        for module in changed:
            module.forward = types.MethodType(_forward, module)


@contextlib.contextmanager
def as_codes(model: nn.Module, folded: bool = True) -> Iterator[None]:
    """Let layers that train with rounded weights compute from 8-bit codes, as exported programs store them.

    Weights of other schemes become the numbers that their codes stand for; ranges of activations that were not
    observed are left to the runtime.

    Args:
        model: with or without such layers.
        folded: hold codes; otherwise make them of the weight in every pass, which OpenVINO folds itself.
    """
    changed = _rounding_layers(model)
    if changed:
        # Registers the operators.
        import torch.ao.quantization.fx._decomposed  # noqa: F401
    try:
        for module in changed:
            _store_codes(module, folded)
        yield
    finally:
        for module in changed:
            for name in ("codes", "scale", "zero"):
                module._buffers.pop(name, None)
            module.forward = types.MethodType(_forward, module)


@torch.no_grad()
def _store_codes(module: nn.Module, folded: bool) -> None:
    rounding: LayerRounding = module.__dict__[_ROUNDING]
    levels = rounding.scheme.levels
    weight = rounding.clip(_oriented(module)).detach().float()
    if levels is None:
        rounded = rounding.weight(_oriented(module))
        module.register_buffer("codes", rounded.contiguous(), persistent=False)
    else:
        scale = weight.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / levels
        codes = (weight * (1 / scale[:, None])).round().clamp(-128, 127).to(torch.int8)
        module.register_buffer("codes", codes if folded else weight.contiguous(), persistent=False)
        module.register_buffer("scale", scale, persistent=False)
        module.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int64), persistent=False)
    if rounding.config.activations == "observed" and bool(rounding.low <= rounding.high):
        step, zero = affine(rounding.low, rounding.high)
        module.forward = types.MethodType(_with_codes(float(step), int(zero)), module)
    else:
        module.forward = types.MethodType(_with_codes(None, 0), module)


def _with_codes(step: float | None, zero: int) -> Any:
    operators = torch.ops.quantized_decomposed

    def forward(module: Any, inputs: torch.Tensor) -> torch.Tensor:
        if step is not None:
            limits = (step, zero, 0, 255, torch.uint8)
            codes = operators.quantize_per_tensor.default(inputs, *limits)
            inputs = operators.dequantize_per_tensor.default(codes, *limits)
        weight = module.codes
        if hasattr(module, "scale"):
            rows = (module.scale, module.zero, 0, -128, 127, torch.int8)
            if weight.dtype != torch.int8:
                weight = operators.quantize_per_channel.default(weight, *rows)
            weight = operators.dequantize_per_channel.default(weight, *rows)
        return nn.functional.linear(inputs, weight, module.bias)

    return forward
