"""Schemes of bitsandbytes, and its 4-bit layers kept whole on CPUs.

Level: state. The only user of bitsandbytes.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.rounding import FP4, NF4, round_blocks, round_rows
from hf_compress.quantization.schemes import SCHEMES, Scheme, is_transposed, linear_inputs

_PACKAGES = ("bitsandbytes",)
_OPTIONS_4_BIT = frozenset({"double_quant", "compute_dtype", "storage_dtype"})


def _int8(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.threshold, llm_int8_skip_modules=list(skip))


def _4_bit(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.scheme,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, config.compute_dtype),
        bnb_4bit_quant_storage=getattr(torch, config.storage_dtype),
        llm_int8_skip_modules=list(skip),
    )


def _round_int8(weight: torch.Tensor, config: QuantizationConfig) -> torch.Tensor:
    # bitsandbytes makes its codes of the weight in half precision.
    return round_rows(weight.half().to(weight.dtype))


def _round_4_bit(weight: torch.Tensor, config: QuantizationConfig) -> torch.Tensor:
    # Block scales that double quantization rounds again are within 0.5 % of these.
    return round_blocks(weight, NF4 if config.scheme == "nf4" else FP4)


def _bits(config: QuantizationConfig) -> float:
    if config.scheme == "int8":
        return 8.0
    # A scale in 32 bits for each 64 weights, or in 8 bits with one of its own for each 256 scales.
    return 4 + (8 + 32 / 256 if config.double_quant else 32) / 64


def _block(config: QuantizationConfig) -> int | None:
    return 64


def _no_blocks(module: Any, config: QuantizationConfig) -> str:
    # On CPUs bitsandbytes 0.50 starts a new block with each row when it unpacks, but not when it packs; those with
    # AVX512-BF16 take 32 outputs at a time.
    inputs = linear_inputs(module)
    outputs = module.weight.shape[-1 if is_transposed(module) else 0]
    if inputs % 64:
        return f"its {inputs} inputs are no multiple of 64, which bitsandbytes unpacks wrongly"
    return (
        f"its {outputs} outputs are no multiple of 32, which bitsandbytes cannot run on CPUs" if outputs % 32 else ""
    )


@torch.inference_mode()
def _deep_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, str]:
    # On CPUs bitsandbytes 0.50 takes the largest value of each row along the wrong dimension then. Text has three
    # dimensions throughout, and its models may be large.
    if model.main_input_name == "input_ids":
        return {}
    found, hooks = {}, []

    def watch(name: str, layer: nn.Module) -> None:
        shape: list[int] = []

        def before(module: nn.Module, inputs: Any) -> Any:
            shape[:] = inputs[0].shape[:-1]
            if len(shape) > 2:
                found[name] = f"its inputs have {len(shape) + 1} dimensions, which 8 bits of bitsandbytes fail on"
            return (inputs[0].flatten(0, -2),)

        def after(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.unflatten(0, shape)

        hooks.extend([layer.register_forward_pre_hook(before), layer.register_forward_hook(after)])

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            watch(name, module)
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


SCHEMES.register("int8")(
    Scheme(
        _int8,
        _bits,
        _PACKAGES,
        frozenset({"threshold"}),
        rounds=_round_int8,
        cannot_run=_deep_inputs,
        levels=127.0,
    )
)
for _name in ("nf4", "fp4"):
    SCHEMES.register(_name)(
        Scheme(_4_bit, _bits, _PACKAGES, _OPTIONS_4_BIT, rounds=_round_4_bit, unfit=_no_blocks, group=_block)
    )


def layers_4_bit(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the 4-bit linear layers of bitsandbytes with their names."""
    if "bitsandbytes" not in sys.modules:
        return
    import bitsandbytes

    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            yield name, module


def quantized_layers(model: nn.Module) -> Iterator[str]:
    """Yield the names of the layers whose weights bitsandbytes holds in 8 or 4 bits."""
    if "bitsandbytes" not in sys.modules:
        return
    import bitsandbytes

    for name, module in model.named_modules():
        if isinstance(module, (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)):
            yield name


def dequantize(layer: Any) -> torch.Tensor:
    """Return the numbers that the codes of a layer of bitsandbytes stand for, (outputs, inputs)."""
    from bitsandbytes import functional

    if hasattr(layer.weight, "quant_state"):
        layer.state_dict()  # unpacks codes that were packed for a CPU
        return functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    codes, scales = layer.weight.data, layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return codes.float() * scales.float()[:, None] / 127


def protect_4bit(model: nn.Module) -> nn.Module:
    """Let 4-bit layers on a CPU be saved after a forward pass, and trained through after an evaluation.

    On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit weight at its first forward pass without gradients. A save
    then writes wrong block scales, which stay in memory too, and later gradients end at that layer without a
    message. Layers of `model` keep their state from before and take it back when it is saved or trained through.

    Args:
        model: with or without such layers; it is changed in place, and nothing else about it.

    Returns:
        `model`.
    """
    late = []
    for name, layer in layers_4_bit(model):
        if getattr(layer, "_hf_compress_keeps", False):
            continue
        keeper = _Keeper()
        if _is_packed(layer):
            late.append(name)
            keeper.state = _unpacked_scales(layer.weight.quant_state)
        layer.register_forward_pre_hook(keeper.before_forward)
        # torch marks the hook, which it cannot do to a method.
        layer.register_state_dict_post_hook(functools.partial(keeper.after_state_dict))
        layer._hf_compress_keeps = True
    if late:
        warnings.warn(
            f"{len(late)} 4-bit layers, e.g. {late[0]}, have run before they were protected: their block scales are "
            "rounded to bfloat16; load the model anew for exact ones",
            stacklevel=2,
        )
    return model


class _Keeper:
    """Remembers the quantization state of one layer while its weight is packed for the CPU."""

    def __init__(self) -> None:
        self.state: Any = None

    def before_forward(self, layer: Any, arguments: tuple[Any, ...]) -> None:
        needs_gradient = torch.is_grad_enabled() and (layer.training or arguments[0].requires_grad)
        if not _is_packed(layer):
            self.state = copy.copy(layer.weight.quant_state)
        elif needs_gradient:
            # Asking for the state unpacks the codes; what it makes of the scales is replaced.
            layer.state_dict()

    def after_state_dict(self, layer: Any, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        if self.state is None or _is_packed(layer):
            return
        layer.weight.quant_state = layer.quant_state = copy.copy(self.state)
        for key, value in self.state.as_dict(packed=True).items():
            state_dict[f"{prefix}weight.{key}"] = value.detach()


def _is_packed(layer: Any) -> bool:
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def _unpacked_scales(packed: Any) -> Any:
    """Return the state of a packed layer as it was before, as far as it can be known."""
    if packed.original_nested:
        # bitsandbytes quantizes the scales again itself when it unpacks.
        return None
    state = copy.copy(packed)
    state.absmax = packed.absmax.T.reshape(-1).float().contiguous()
    state.dtype = packed.original_dtype
    state.packing_format_for_cpu = False
    return state
