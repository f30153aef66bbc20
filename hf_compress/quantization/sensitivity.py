"""What quantizing each layer alone does to the predictions, and which layers to leave in 16 bit for that.

Level: state.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.modes import outside_training
from hf_compress.errors import DataError, QuantizationError
from hf_compress.quantization.api import layers_by_fit
from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.schemes import is_transposed, scheme_of

Batch = Mapping[str, torch.Tensor]


@torch.no_grad()
def quantization_sensitivity(
    model: Any, batches: Sequence[Batch], config: QuantizationConfig | None = None
) -> dict[str, float]:
    """Return for each linear layer how far the predictions move when its weight alone is quantized.

    Args:
        model: a plain transformers model with logits; it is left as it is.
        batches: inputs by name; labels are not needed.
        config: the scheme whose rounding is tried; LLM.int8() if not given.

    Returns:
        Name of the layer -> mean Kullback-Leibler divergence of the predictions (nats; half of the mean squared
        difference where there is one output only), the largest first.

    Raises:
        DataError: if there are no batches.
        QuantizationError: if the scheme cannot be simulated, or the model has no logits or no layer to quantize.
    """
    config = config or QuantizationConfig()
    if not batches:
        raise DataError("expected at least one batch of inputs to compare predictions on, found none")
    found = {}
    with outside_training(model):
        wanted = [list(predictions(model, batch)) for batch in batches]
        for name, weight, rounded in rounded_weights(model, config):
            print(f"sensitivity: {name}", file=sys.stderr)
            original = weight.clone()
            weight.copy_(rounded)
            try:
                found[name] = mean_divergence(model, batches, wanted)
            finally:
                weight.copy_(original)
    if not found:
        raise QuantizationError(f"{type(model).__name__} has no linear layer that {config.scheme} can quantize")
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def rounded_weights(model: Any, config: QuantizationConfig) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield for each linear layer that a scheme takes its name, its weight and what the codes stand for instead.

    Raises:
        QuantizationError: if the scheme cannot be simulated.
    """
    scheme = scheme_of(config)
    if scheme.rounds is None:
        raise QuantizationError(f"{config.scheme} cannot be simulated layer by layer")
    for name, module in layers_by_fit(model, config, scheme)[0].items():
        weight = module.weight.detach()
        if is_transposed(module):
            yield name, weight, scheme.rounds(weight.T.contiguous(), config).T
        else:
            yield name, weight, scheme.rounds(weight.contiguous(), config)


def mixed_precision(
    model: Any, sensitivity: Mapping[str, float], budget: int, config: QuantizationConfig | None = None
) -> QuantizationConfig:
    """Return `config` with the layers to leave alone, so that the weights take at most `budget` bytes.

    Layers with the largest sensitivity for each byte that leaving them costs stay in the dtype of the model, as long
    as the budget allows.

    Args:
        model: that `sensitivity` is of.
        sensitivity: of `quantization_sensitivity`.
        budget: bytes of all weights together, embeddings too.
        config: the scheme; LLM.int8() if not given.

    Raises:
        QuantizationError: if the model is bigger even with every layer quantized, with its size.
    """
    config = config or QuantizationConfig()
    scheme = scheme_of(config)
    modules = {name: model.get_submodule(name) for name in sensitivity}
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    itemsize = {p: (dtype or p.dtype).itemsize for p in model.parameters()}
    small = {n: m.weight.numel() * scheme.bits(config) / 8 for n, m in modules.items()}
    large = {n: m.weight.numel() * itemsize[m.weight] for n, m in modules.items()}
    total = sum(p.numel() * size for p, size in itemsize.items()) - sum(large.values()) + sum(small.values())
    if total > budget:
        raise QuantizationError(
            f"with every layer quantized by {config.scheme} the weights take {int(total):,} bytes, more than "
            f"{budget:,}; take a scheme with fewer bits, dtype='bfloat16', or shrink the model first"
        )
    kept = []
    for name in sorted(modules, key=lambda n: -sensitivity[n] / (large[n] - small[n])):
        if sensitivity[name] > 0 and total + large[name] - small[name] <= budget:
            kept.append(name)
            total += large[name] - small[name]
    return dataclasses.replace(config, skip_modules=(*config.skip_modules, *kept))


def mean_divergence(model: Any, batches: Sequence[Batch], wanted: Sequence[Sequence[torch.Tensor]]) -> float:
    """Return how far predictions are from others, in nats (half of the mean squared difference of single outputs).

    Args:
        model: whose predictions are compared.
        batches: inputs by name.
        wanted: for each batch what `predictions` gave of another model.
    """
    total, count = 0.0, 0
    for batch, expected in zip(batches, wanted, strict=True):
        for first, second in zip(expected, predictions(model, batch), strict=True):
            each = _divergence(first, second)
            total, count = total + float(each.sum()), count + each.numel()
    return total / count


def _divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the divergence of each prediction, (predictions,)."""
    if first.shape[-1] == 1:
        return (first - second).square().sum(-1) / 2
    logs = first.log_softmax(-1), second.log_softmax(-1)
    return nn.functional.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(-1)


def predictions(model: Any, batch: Batch) -> Iterator[torch.Tensor]:
    """Yield what the model predicts, (predictions, outputs), without those of padding."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in without_labels(model, batch).items()}
    found = [t for n, t in model(**inputs).items() if n.endswith("logits")]
    if not found:
        raise QuantizationError(f"{type(model).__name__} has no logits to compare; take a model with a head")
    mask = inputs.get("attention_mask")
    for logits in found:
        if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2]:
            yield logits[mask.bool()].float()
        else:
            yield logits.float().reshape(-1, logits.shape[-1])
