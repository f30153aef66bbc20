"""How weights are rounded, as pure functions: what training simulates and a runtime stores.

Level: maths. Each returns the numbers that the stored codes stand for, in the dtype of the weight.
"""

from __future__ import annotations

import torch

# The sixteen values of NormalFloat and of bitsandbytes' 4-bit float (QLoRA, arXiv:2305.14314, appendix E; E2M1).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 0.0052083333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0)
FP4 = tuple(sorted({-v for v in _FP4} | set(_FP4)))


def round_rows(weight: torch.Tensor, levels: float = 127.0) -> torch.Tensor:
    """Round each row to multiples of its largest absolute value over `levels` (LLM.int8(), arXiv:2208.07339, eq. 3).

    Args:
        weight: (outputs, inputs).
        levels: of each sign.
    """
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / levels
    return (weight / scale).round() * scale


def round_groups(weight: torch.Tensor, bits: int, group: int | None) -> torch.Tensor:
    """Round groups of inputs to signed integers, as torchao's symmetric mapping does.

    The scale is the largest absolute value over half of the steps (2^bits - 1), so the largest code is clipped.

    Args:
        weight: (outputs, inputs).
        bits: 2 to 8.
        group: neighbouring inputs that share a scale, a divisor of the inputs; None for whole rows.
    """
    grouped = weight.reshape(weight.shape[0], -1, group or weight.shape[-1])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True) / ((high - low) / 2)
    scale = scale.clamp_min(torch.finfo(weight.dtype).eps)
    # The largest entry lies between two codes: as torchao, multiply by the reciprocal to fall on the same side.
    return ((grouped * (1 / scale)).round().clamp(low, high) * scale).reshape(weight.shape)


def round_blocks(weight: torch.Tensor, values: tuple[float, ...], block: int = 64) -> torch.Tensor:
    """Round blocks of `block` entries to the nearest of `values` times their largest absolute value (QLoRA, eq. 4).

    Args:
        weight: of any shape; blocks run through it in memory order, the last one may be shorter.
        values: sorted, from -1 to 1.
        block: entries that share a scale.
    """
    flat = weight.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % block)).reshape(-1, block)
    scale = padded.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    table = torch.tensor(values, dtype=weight.dtype, device=weight.device)
    nearest = torch.bucketize((padded / scale).contiguous(), (table[1:] + table[:-1]) / 2)
    return (table[nearest] * scale).reshape(-1)[: flat.numel()].reshape(weight.shape)


def round_tokens(inputs: torch.Tensor) -> torch.Tensor:
    """Round each token to 8 bit with a scale of its own, symmetric around 0, as torchao's dynamic quantization does.

    Args:
        inputs: (..., features).
    """
    scale = inputs.abs().amax(-1, keepdim=True) / 127.5
    scale = scale.clamp_min(torch.finfo(torch.float32).eps)
    return (inputs * (1 / scale)).round().clamp(-128, 127) * scale


def affine(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point of unsigned 8-bit codes for numbers from `low` to `high`, 0 exact among them.

    Args:
        low: smallest number, a scalar.
        high: largest number, a scalar.
    """
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).eps)
    return scale, (-low / scale).round().clamp(0, 255)


def round_range(inputs: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Round to 256 steps between `low` and `high`; what lies outside is clipped."""
    scale, zero = affine(low, high)
    return ((inputs / scale + zero).round().clamp(0, 255) - zero) * scale


def straight_through(original: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `rounded` with the gradient of `original` (straight-through estimator, arXiv:1308.3432)."""
    return original + (rounded - original).detach()
