"""Merging a PEFT adapter into a sparse model without losing its zeros.

Level: state. PEFT is known by its methods only.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from hf_compress.errors import UnsupportedError

logger = logging.getLogger(__name__)


def merge_adapter(model: Any) -> nn.Module:
    """Merge the active adapters into their base and unload them; entries of the base that are zero stay zero.

    The part of the adapter that falls on zeros is lost, so the merged model differs from the unmerged one; the norm of
    that part is logged. Measure the merged model, or keep the adapter unmerged.

    Args:
        model: a `PeftModel`; it is used up, as by its own `merge_and_unload`.

    Returns:
        The plain transformers model.

    Raises:
        UnsupportedError: if `model` has no adapter, or one that cannot be merged, or its base is quantized.
    """
    if not hasattr(model, "merge_and_unload"):
        raise UnsupportedError(
            f"expected a PEFT model whose adapter can be merged, found {type(model).__name__}; prompt-like adapters "
            "have nothing to merge"
        )
    weights = [m.get_base_layer().weight for m in model.modules() if hasattr(m, "get_base_layer")]
    packed = [w for w in weights if not w.is_floating_point()]
    if packed:
        raise UnsupportedError(
            f"the base is quantized ({packed[0].dtype}), so its zeros cannot be told from other values; load the "
            "16-bit model, attach the adapter and merge there"
        )
    stays = [weight.detach() != 0 for weight in weights]
    merged = model.merge_and_unload(safe_merge=True)
    lost = kept = 0.0
    with torch.no_grad():
        for weight, mask in zip(weights, stays, strict=True):
            # Where the base was zero, what is there now is the adapter's.
            lost += float(weight[~mask].float().square().sum())
            weight.mul_(mask)
            kept += float(weight.float().square().sum())
    logger.info("merged; what fell on zeros had %.2f %% of the weights' norm", 100 * (lost / max(kept, 1e-30)) ** 0.5)
    return merged
