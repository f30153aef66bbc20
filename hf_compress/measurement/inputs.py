"""Dummy inputs, made from a model's config, for timing and memory.

Level: state.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.verify import feature_shape, find_field, with_end
from hf_compress.errors import ConfigError, UnsupportedError

# A second of sound, as samples and as frames.
_TOKENS, _AUDIO_SAMPLES, _FRAMES, _PIXELS = 128, 16_000, 100, 224


def dummy_inputs(
    model: nn.Module, batch_size: int, length: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Make random inputs that the model accepts, on its device; the global random state is left alone.

    Args:
        model: a transformers model whose main input is input_ids, pixel_values, input_values or input_features; one
            with a text and a vision model side by side (CLIP), or that writes about images (BLIP), gets both.
        batch_size: number of examples, at least 1.
        length: tokens (default 128, never more than the model has positions; those that are written where frames of
            sound are read), audio samples (default 16000), frames of sound (default 100), or the side of an image in
            pixels where the config does not fix it (default 224).
        seed: of the helper's own generator.

    Raises:
        ConfigError: if batch_size or length is below 1.
        UnsupportedError: if the model takes another kind of input.
    """
    if batch_size < 1 or (length is not None and length < 1):
        raise ConfigError(f"batch_size and length must be at least 1, found {batch_size} and {length}")
    kind = getattr(model, "main_input_name", None)
    makers = {"input_ids": _text, "pixel_values": _images, "input_values": _audio, "input_features": _features}
    config = getattr(model, "config", None)
    is_known = kind != "input_features" or feature_shape(config, 1) is not None
    if kind not in makers or config is None or not is_known:
        raise UnsupportedError(
            f"{type(model).__name__}: inputs are made up from a config, for {', '.join(makers)}, not for {kind}; "
            "give inputs of your own (measure: inputs=, export and quantize: batches=)"
        )
    generator = torch.Generator().manual_seed(seed)
    inputs = makers[kind](model, batch_size, length, generator)
    if kind == "input_ids" and hasattr(model, "text_model") and hasattr(model, "vision_model"):
        inputs |= _images(model.vision_model, batch_size, None, generator)
    taken = inspect.signature(model.forward).parameters
    if kind == "pixel_values" and "input_ids" in taken:
        inputs |= _text(model, batch_size, None, generator)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _written(model, batch_size, _TOKENS, generator)
    if "decoder_input_ids" not in taken:
        # The config of an encoder alone speaks of both.
        inputs.pop("decoder_input_ids", None)
    first = next(model.parameters())
    return {
        name: t.to(first.device, floating_dtype(model) if t.is_floating_point() else None)
        for name, t in inputs.items()
    }


def sized_inputs(
    model: nn.Module, batch_size: int, length: int | None = None, sample: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return the rows of `sample`, repeated to `batch_size`, on the device of `model`; without one, `dummy_inputs`."""
    if sample is None:
        return dummy_inputs(model, batch_size, length)
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: t[torch.arange(batch_size) % len(t)].to(place) for name, t in sample.items()}


def check_sample(sample: Any) -> None:
    """Make sure that `sample` is a batch.

    Raises:
        ConfigError: if it is none.
    """
    tensors = list(sample.values()) if isinstance(sample, Mapping) else []
    if not tensors or not all(isinstance(t, torch.Tensor) and t.dim() and len(t) for t in tensors):
        raise ConfigError("inputs must be a batch: a mapping of names to tensors with at least one row each")


def describe_inputs(inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the shape of one example as conditions: {"length": 128}, {"image": "8x8"}, {"samples": 16000} ..."""
    found: dict[str, Any] = {}
    if "input_ids" in inputs:
        found["length"] = inputs["input_ids"].shape[1]
    if "pixel_values" in inputs:
        found["image"] = "x".join(str(n) for n in inputs["pixel_values"].shape[-2:])
    if "input_values" in inputs:
        found["samples"] = inputs["input_values"].shape[1]
    if "input_features" in inputs:
        found["features"] = "x".join(str(n) for n in inputs["input_features"].shape[1:])
    if "decoder_input_ids" in inputs and "input_ids" not in inputs:
        found["length"] = inputs["decoder_input_ids"].shape[1]
    return found


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter: that of the activations."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _text(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = model.config.get_text_config()
    tokens = length or _TOKENS
    shape = (batch_size, min(tokens, _positions(model, config) or tokens))
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
    pad = getattr(config, "pad_token_id", None)
    if pad is not None:
        # Padding would change the work done: RoBERTa counts positions by it.
        ids[ids == pad] = (pad + 1) % config.vocab_size
    if config.is_encoder_decoder:
        ids = with_end(ids, getattr(config, "eos_token_id", None), config.vocab_size)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _positions(model: nn.Module, config: Any) -> int | None:
    limits = (getattr(config, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    limit = next((n for n in limits if isinstance(n, int) and n > 0), None)
    if limit is None:
        return None
    # RoBERTa and its kin start to count positions after the padding index.
    offsets = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return limit - max(offsets, default=0)


def _images(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    size = find_field(model.config, "image_size") or length or _PIXELS
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = find_field(model.config, "num_channels") or 3
    return {"pixel_values": torch.randn((batch_size, channels, height, width), generator=generator)}


def _audio(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = model.config
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # spectrograms (AST)
        shape: tuple[int, ...] = (batch_size, config.max_length, config.num_mel_bins)
    else:
        shape = (batch_size, length or _AUDIO_SAMPLES)
    return {"input_values": torch.randn(shape, generator=generator)}


def _features(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    writes = model.config.is_encoder_decoder
    shape = feature_shape(model.config, _FRAMES if writes else length or _FRAMES)
    inputs = {"input_features": torch.randn((batch_size, *(shape or ())), generator=generator)}
    tokens = {"decoder_input_ids": _written(model, batch_size, length or _TOKENS, generator)} if writes else {}
    return inputs | tokens


def _written(model: Any, batch_size: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Return what a decoder has written, no longer than it can be."""
    decoder = model.config.get_text_config(decoder=True)
    shape = (batch_size, min(tokens, _positions(model, decoder) or tokens))
    return torch.randint(0, decoder.vocab_size, shape, generator=generator)
