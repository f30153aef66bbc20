"""What the decoder of a sequence-to-sequence model reads, where a batch does not say.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_IGNORED = -100


def without_labels(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of a batch; a decoder still reads the labels, shifted as in training.

    Without labels it reads the tokens of the encoder, as BART does by itself. What is no sequence-to-sequence model,
    or gets `decoder_input_ids` or `decoder_inputs_embeds`, needs neither.

    Args:
        model: a transformers model; it may be on the meta device.
        batch: inputs by name, int64 labels (batch, tokens).
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or any(name.startswith("decoder_input") for name in inputs):
        return inputs
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    read = batch.get("labels", batch.get("input_ids") if shift else None)
    if read is None or read.dim() != 2 or read.is_floating_point():
        return inputs
    if shift is not None:
        return {**inputs, "decoder_input_ids": shift(labels=read)}
    start, padding = getattr(config, "decoder_start_token_id", None), getattr(config, "pad_token_id", None)
    if start is None:
        return inputs
    shifted = torch.cat([torch.full_like(read[:, :1], start), read[:, :-1]], 1)
    return {**inputs, "decoder_input_ids": shifted.masked_fill(shifted == _IGNORED, padding or 0)}
