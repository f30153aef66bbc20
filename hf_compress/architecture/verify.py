"""Verification of a smaller model: its outputs must be those of the full one with the removed parts masked.

Level: state. This is what settles the order inside fused matrices and whatever else a probe of shapes cannot see.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture import probing
from hf_compress.errors import ArchitectureError

# Largest difference allowed, relative to the largest output: removal only reorders sums, but 16-bit sums round.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TEXT_LENGTH = 12
_AUDIO_SAMPLES = 8000


def masked_reference(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor],
    kept_layers: Mapping[str, Sequence[int]],
    fields: Mapping[str, Any],
) -> Any:
    """Return a copy of `model` with units zeroed and layers taken out of their lists; other tensors are shared.

    Args:
        model: the full model, left as it is.
        masks: parameter name -> bool tensor of its shape, False where zeroed.
        kept_layers: name of a module list -> indices that stay, ascending.
        fields: dotted config path -> value; forward passes read the number of layers and their types there.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # The memo makes deepcopy share every tensor, so only the masked ones cost memory.
    reference = copy.deepcopy(model, {id(t): t for t in tensors})
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        masked = reference.get_parameter(name).detach() * mask
        setattr(reference.get_submodule(path), leaf, nn.Parameter(masked, requires_grad=False))
    for path, kept in kept_layers.items():
        parent, _, leaf = path.rpartition(".")
        layers = list(reference.get_submodule(path).children())
        setattr(reference.get_submodule(parent), leaf, nn.ModuleList([layers[i] for i in kept]))
    for path, value in fields.items():
        probing.set_field(reference.config, path, value)
    return reference


def check_equal(shrunk: Any, reference: Any) -> None:
    """Compare the outputs of both on a small made-up input.

    Raises:
        ArchitectureError: if they differ by more than rounding, or no input could be made.
    """
    inputs, expected = _first_accepted(reference)
    found = outputs(shrunk, inputs)
    tolerance = _TOLERANCE.get(_narrowest(reference), 1e-4)
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.numel() else 0.0
        is_same_shape = name in found and found[name].shape == value.shape
        error = float((found[name] - value).abs().max()) if is_same_shape and value.numel() else 0.0
        # `not <=` instead of `>`: NaN must count as different.
        if not is_same_shape or not error <= tolerance * max(scale, 1e-6):
            raise ArchitectureError(
                f"expected the smaller {type(shrunk).__name__} to give the outputs of the masked model, found {name} "
                f"different by {error:.2e} at a scale of {scale:.2e}; this architecture does not lay out or use its "
                "parts as the rules assume, so the model was not changed: keep that size, or report the architecture"
            )


def made_up_outputs(model: Any) -> dict[str, torch.Tensor]:
    """Return the floating-point outputs of `model` for a small made-up input, by name.

    Raises:
        ArchitectureError: if no input could be made.
    """
    return _first_accepted(model)[1]


def _narrowest(model: nn.Module) -> torch.dtype:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


def _first_accepted(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    reason = "it names no input that is known"
    for inputs in _candidate_inputs(model):
        try:
            found = outputs(model, inputs)
        except probing.build_errors() as error:
            reason = str(error).strip().split("\n")[0]
            continue
        if found:
            return inputs, found
    raise ArchitectureError(
        f"expected to verify the smaller {type(model).__name__} on a made-up input, found none that it accepts "
        f"({reason}); pass verify=False and compare outputs on an input of your own"
    )


def outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the floating-point tensors among the outputs, in float32; the random streams of the caller stay put."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    cuda = [device] if device.type == "cuda" else []
    # Layers keep their old index, under which a cache made for fewer layers has no place.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), torch.autocast(device.type, enabled=False):
            torch.manual_seed(0)
            output = model(**inputs, **options)
    finally:
        model.train(was_training)
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    wide = (torch.float32, torch.float64)
    found = {str(k): v for k, v in items if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return {k: v if v.dtype in wide else v.float() for k, v in found.items()}


def _candidate_inputs(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs made from the config: the main one alone, then everything that forward takes."""
    accepted = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    made = {name: value for name, value in _made_up(model).items() if name in accepted}
    main = {name: made[name] for name in (model.main_input_name, "decoder_input_ids") if name in made}
    for inputs in (main, made):
        if inputs:
            yield {name: value.to(device) for name, value in inputs.items()}


def _made_up(model: Any) -> dict[str, torch.Tensor]:
    config = model.config
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # A batch of one: decoders that classify refuse more without a padding token.
    made = {"input_values": noise(1, _AUDIO_SAMPLES)}
    vocabulary = _find(config, "vocab_size")
    if vocabulary:
        length = min(_TEXT_LENGTH, _find(config, "max_position_embeddings") or _TEXT_LENGTH)
        ids = torch.randint(vocabulary, (1, length), generator=generator)
        end = _find(config, "eos_token_id")
        # Some encoder-decoders classify at the end token and refuse inputs that have none.
        if isinstance(end, int) and 0 <= end < vocabulary:
            ids = ids.where(ids != end, (end + 1) % vocabulary)
            ids[0, -1] = end
        made["input_ids"] = ids
        made["decoder_input_ids"] = ids.clone()
    size = _find(config, "image_size") or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    made["pixel_values"] = noise(1, _find(config, "num_channels") or 3, height, width)
    if isinstance(_find(config, "max_length"), int) and _find(config, "frequency_stride"):
        # A spectrogram of one length only.
        made["input_values"] = noise(1, _find(config, "max_length"), _find(config, "num_mel_bins"))
    frames = 2 * (_find(config, "max_source_positions") or _TEXT_LENGTH)
    made["input_features"] = noise(1, _find(config, "num_mel_bins") or 80, frames)
    return made


def _find(config: Any, name: str) -> Any:
    """Return a field of the config or of the first sub-config that has it; None if there is none."""
    if getattr(config, name, None) is not None:
        return getattr(config, name)
    parts = [value for value in vars(config).values() if hasattr(value, "model_type") and hasattr(value, "to_dict")]
    return next((found for part in parts if (found := _find(part, name)) is not None), None)
