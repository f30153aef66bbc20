"""Perplexity of causal language models, with every token but the first predicted once and the context stated.

Level: state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_compress.architecture.modes import outside_training
from hf_compress.errors import DataError

# Logits of so many tokens exist at once, at most.
_ROWS = 256


@torch.no_grad()
def perplexity(
    model: nn.Module, tokens: torch.Tensor, *, length: int = 512, stride: int | None = None, batch_size: int = 8
) -> dict[str, float]:
    """Return the perplexity of one long text.

    Windows of `length` tokens follow each other at `stride`; of each, only the tokens that no window before it has
    predicted count, so every one but the first of the text is predicted once, from up to `length` - 1 before it.

    Args:
        model: a causal language model of transformers; it runs in eval mode, without dropout.
        tokens: ids of the text, int64, (tokens,).
        length: tokens of a window, at least 2.
        stride: 1 to `length` - 1; None: that, which is fastest and gives the first tokens of windows little context.
        batch_size: windows at once.

    Returns:
        "perplexity", "loss" (nats a token), "tokens" (predicted), "context" and "stride".

    Raises:
        DataError: if there are fewer than 2 tokens, or a size is too small.

    Source: Jelinek et al. 1977; strided as in the documentation of transformers.
    """
    # The last token of a window is at least the context of the next one's first.
    stride = length - 1 if stride is None else min(stride, length - 1)
    if length < 2 or stride < 1 or batch_size < 1:
        raise DataError(
            f"expected length >= 2, stride >= 1 and batch_size >= 1, found {length}, {stride} and {batch_size}"
        )
    tokens = torch.as_tensor(tokens).flatten()
    if len(tokens) < 2:
        raise DataError(f"expected at least 2 tokens to predict, found {len(tokens)}")
    device = next(model.parameters()).device
    total, done = 0.0, 1
    with outside_training(model):
        for windows in _batches(_windows(len(tokens), length, stride), batch_size):
            ids = torch.stack([tokens[first:last] for first, last in windows]).to(device)
            fresh = []
            for first, last in windows:
                fresh.append(last - max(done, first + 1))
                done = last
            total += _loss(model, ids, fresh)
    loss = total / (len(tokens) - 1)
    found = {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
    return {**found, "tokens": len(tokens) - 1, "context": length, "stride": stride}


def _windows(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    found, first = [], 0
    while True:
        last = min(first + length, count)
        found.append((first, last))
        if last == count:
            return found
        first += stride


def _batches(windows: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """Return groups of windows of one length."""
    groups: list[list[tuple[int, int]]] = []
    for window in windows:
        is_alike = bool(groups) and groups[-1][0][1] - groups[-1][0][0] == window[1] - window[0]
        if is_alike and len(groups[-1]) < size:
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups


def _loss(model: Any, ids: torch.Tensor, fresh: list[int]) -> float:
    logits = model(input_ids=ids, use_cache=False).logits
    total = 0.0
    for row, targets, count in zip(logits, ids, fresh, strict=True):
        size = len(targets)
        for first in range(size - count, size, _ROWS):
            last = min(first + _ROWS, size)
            values = row[first - 1 : last - 1].float()
            total += float(F.cross_entropy(values, targets[first:last], reduction="sum"))
    return total
