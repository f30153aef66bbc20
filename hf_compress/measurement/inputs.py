"""Dummy inputs, made from a model's config, for timing and memory.

Level: state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.verify import with_end
from hf_compress.errors import ConfigError, UnsupportedError

_TOKENS, _AUDIO_SAMPLES, _PIXELS = 128, 16_000, 224


def dummy_inputs(
    model: nn.Module, batch_size: int, length: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Make random inputs that the model accepts, on its device; the global random state is left alone.

    Args:
        model: a transformers model whose main input is input_ids, pixel_values, input_values or input_features; one
            with a text and a vision model side by side (CLIP) gets both.
        batch_size: number of examples, at least 1.
        length: tokens (default 128, never more than the model has positions; of Whisper, of what it writes), audio
            samples (default 16000), or the side of an image in pixels where the config does not fix it (default 224).
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
    # Of the models that take features Whisper's config says their shape.
    is_known = kind != "input_features" or hasattr(config, "num_mel_bins")
    if kind not in makers or config is None or not is_known:
        raise UnsupportedError(
            f"{type(model).__name__}: inputs are made up from a config, for {', '.join(makers)}, not for {kind}; "
            "give inputs of your own (measure: inputs=, export: batches=)"
        )
    generator = torch.Generator().manual_seed(seed)
    inputs = makers[kind](model, batch_size, length, generator)
    if kind == "input_ids" and hasattr(model, "text_model") and hasattr(model, "vision_model"):
        inputs |= _images(model.vision_model, batch_size, None, generator)
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
        found["frames"] = inputs["input_features"].shape[-1]
        found |= {"length": inputs["decoder_input_ids"].shape[1]} if "decoder_input_ids" in inputs else {}
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
        ids = with_end(ids, config.eos_token_id, config.vocab_size)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _positions(model: nn.Module, config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # RoBERTa and its kin start to count positions after the padding index.
    offsets = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return limit - max(offsets, default=0)


def _images(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    size = getattr(model.config, "image_size", None) or length or _PIXELS
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(model.config, "num_channels", 3)
    return {"pixel_values": torch.randn((batch_size, channels, height, width), generator=generator)}


def _audio(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = model.config
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # spectrograms (AST)
        shape: tuple[int, ...] = (batch_size, config.max_length, config.num_mel_bins)
    else:
        shape = (batch_size, length or _AUDIO_SAMPLES)
    return {"input_values": torch.randn(shape, generator=generator)}


def _features(model: Any, batch_size: int, length: int | None, generator: torch.Generator) -> dict[str, torch.Tensor]:
    config = model.config
    # Whisper takes spectrograms of one length only, two frames a position.
    frames = 2 * config.max_source_positions
    tokens = min(length or _TOKENS, config.max_target_positions)
    return {
        "input_features": torch.randn((batch_size, config.num_mel_bins, frames), generator=generator),
        "decoder_input_ids": torch.randint(0, config.vocab_size, (batch_size, tokens), generator=generator),
    }
