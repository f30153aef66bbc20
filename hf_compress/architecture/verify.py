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
from torch.func import functional_call

from hf_compress.architecture import probing
from hf_compress.architecture.modes import outside_training
from hf_compress.errors import ArchitectureError

# Largest difference allowed, relative to the largest output: removal only reorders sums, but 16-bit sums round.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TEXT_LENGTH = 12
_AUDIO_SAMPLES = 8000
_FRAMES = 64


class OutputsDiffer(ArchitectureError):
    """A smaller model gives other outputs than the masked one."""


def masked_reference(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor],
    kept_layers: Mapping[str, Sequence[int]],
    fields: Mapping[str, Any],
    narrowed: Mapping[str, torch.Tensor],
) -> Any:
    """Return a copy of `model` with units zeroed and layers taken out of their lists; other tensors are shared.

    Args:
        model: the full model, left as it is.
        masks: parameter name -> bool tensor of its shape, False where zeroed.
        kept_layers: name of a module list -> indices that stay, ascending.
        fields: dotted config path -> value; forward passes read the number of layers and their types there.
        narrowed: name of a norm -> the channels over which alone it computes its statistics.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # The memo makes deepcopy share every tensor, so only the masked ones cost memory.
    reference = copy.deepcopy(model, {id(t): t for t in tensors})
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        masked = reference.get_parameter(name).detach() * mask
        setattr(reference.get_submodule(path), leaf, nn.Parameter(masked, requires_grad=False))
    for path, channels in narrowed.items():
        parent, _, leaf = path.rpartition(".")
        setattr(reference.get_submodule(parent), leaf, Narrowed(model.get_submodule(path), channels))
    for path, kept in kept_layers.items():
        parent, _, leaf = path.rpartition(".")
        layers = list(reference.get_submodule(path).children())
        setattr(reference.get_submodule(parent), leaf, nn.ModuleList([layers[i] for i in kept]))
    for path, value in fields.items():
        probing.set_field(reference.config, path, value)
    return reference


class Narrowed(nn.Module):
    """Applies a norm, or another function of channels, to some of them, and gives zero for the others.

    Args:
        module: has parameters of one dimension only, which stay its own.
        kept: the channels, LongTensor; may be changed later.
    """

    def __init__(self, module: nn.Module, kept: torch.Tensor) -> None:
        super().__init__()
        self.module, self.kept = module, kept
        self.size = max(len(p) for p in module.parameters())
        # In a tuple, so that it is no part of this module: its own parameters are never used.
        self._narrow = (copy.deepcopy(module),)

    def forward(self, values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a tensor shaped like `values`, whose channels are its last dimension, or else the second."""
        dim, kept = values.dim() - 1 if values.shape[-1] == self.size else 1, self.kept.to(values.device)
        narrow = self._narrow[0]
        # torch's own norms are told their size apart from their weights.
        if hasattr(narrow, "normalized_shape"):
            narrow.normalized_shape = (len(kept),)
        parameters = {name: p.index_select(0, kept) for name, p in self.module.named_parameters()}
        found = functional_call(narrow, parameters, (values.index_select(dim, kept), *args), kwargs)
        return torch.zeros_like(values, dtype=found.dtype).index_copy(dim, kept, found)


def hand_on(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Return what a layer that is gone would give: a forward hook that makes a layer hand on what it was given."""
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


def check_equal(shrunk: Any, reference: Any, kept: Mapping[tuple[int, int], Sequence[torch.Tensor]]) -> None:
    """Compare the outputs of both on a small made-up input.

    Args:
        shrunk: the smaller model.
        reference: the full one, masked.
        kept: (number of channels before, after) -> which ones may have stayed, for outputs that are channels.

    Raises:
        OutputsDiffer: if they differ by more than rounding.
        ArchitectureError: if no input could be made.
    """
    inputs, expected = made_up(reference)
    found = outputs(shrunk, inputs)
    tolerance = _TOLERANCE.get(_narrowest(reference), 1e-4)
    for name, value in expected.items():
        value = _shortened(value, found[name], kept) if name in found else value
        scale = float(value.abs().max()) if value.numel() else 0.0
        is_same_shape = name in found and found[name].shape == value.shape
        error = float((found[name] - value).abs().max()) if is_same_shape and value.numel() else 0.0
        # `not <=` instead of `>`: NaN must count as different.
        if not is_same_shape or not error <= tolerance * max(scale, 1e-6):
            raise OutputsDiffer(
                f"expected the smaller {type(shrunk).__name__} to give the outputs of the masked model, found {name} "
                f"different by {error:.2e} at a scale of {scale:.2e}; this architecture does not lay out or use its "
                "parts as the rules assume, so the model was not changed: keep that size, or report the architecture"
            )


def _narrowest(model: nn.Module) -> torch.dtype:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


def _shortened(
    value: torch.Tensor, found: torch.Tensor, kept: Mapping[tuple[int, int], Sequence[torch.Tensor]]
) -> torch.Tensor:
    """Return `value` with the channels that `found` has, of several possible ones those that come nearest."""
    if value.dim() != found.dim():
        return value
    for dim, sizes in enumerate(zip(value.shape, found.shape, strict=True)):
        options = [value.index_select(dim, units.to(value.device)) for units in kept.get(sizes, ())]
        if sizes[0] != sizes[1] and options:
            is_last = options[0].shape == found.shape
            value = min(options, key=lambda v: float((v - found).abs().max())) if is_last else options[0]
    return value


def made_up(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return a small made-up input, by name, and the floating-point outputs of `model` for it.

    Raises:
        ArchitectureError: if it accepts none.
    """
    reason = "it names no input that is known"
    for inputs in candidate_inputs(model):
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
    cuda = [device] if device.type == "cuda" else []
    # Layers keep their old index, under which a cache made for fewer layers has no place.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    plain = torch.autocast(device.type, enabled=False)
    with outside_training(model), torch.random.fork_rng(devices=cuda), torch.no_grad(), plain:
        torch.manual_seed(0)
        output = model(**inputs, **options)
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    wide = (torch.float32, torch.float64)
    found = {str(k): v for k, v in items if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return {k: v if v.dtype in wide else v.float() for k, v in found.items()}


def candidate_inputs(model: Any, length: int = _TEXT_LENGTH) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs made from the config, a batch of one: the main one alone, then everything that forward takes.

    Args:
        model: on whose device they are.
        length: tokens of a text, at most.
    """
    accepted = inspect.signature(model.forward).parameters
    device = next(model.parameters()).device
    made = {name: value for name, value in _all_inputs(model, length).items() if name in accepted}
    main = {name: made[name] for name in (model.main_input_name, "decoder_input_ids") if name in made}
    for inputs in (main, made):
        if inputs:
            yield {name: value.to(device) for name, value in inputs.items()}


def _all_inputs(model: Any, most: int) -> dict[str, torch.Tensor]:
    config = model.config
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # A batch of one: decoders that classify refuse more without a padding token.
    made = {"input_values": noise(1, _AUDIO_SAMPLES)}
    vocabulary = find_field(config, "vocab_size")
    if vocabulary:
        positions = find_field(config, "max_position_embeddings") or most
        # XLNet says -1, for any number.
        length = min(most, positions) if positions > 0 else most
        ids = torch.randint(vocabulary, (1, length), generator=generator)
        made["input_ids"] = ids = with_end(ids, find_field(config, "eos_token_id"), vocabulary)
        made["decoder_input_ids"] = ids.clone()
    size = find_field(config, "image_size") or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    made["pixel_values"] = noise(1, find_field(config, "num_channels") or 3, height, width)
    if isinstance(find_field(config, "max_length"), int) and find_field(config, "frequency_stride"):
        # A spectrogram of one length only.
        made["input_values"] = noise(1, find_field(config, "max_length"), find_field(config, "num_mel_bins"))
    if shape := feature_shape(config, _FRAMES):
        made["input_features"] = noise(1, *shape)
    return made


def with_end(ids: torch.Tensor, end: Any, vocabulary: int) -> torch.Tensor:
    """Return `ids` (batch, length) with the end token last in each row and nowhere else, if `end` is one.

    Some encoder-decoders classify at the end token and refuse rows that have none or more than one.
    """
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids = ids.where(ids != end, (end + 1) % vocabulary)
        ids[:, -1] = end
    return ids


def feature_shape(config: Any, frames: int) -> tuple[int, int] | None:
    """Return the shape of an example of `input_features`; None if the config says none.

    Args:
        config: (bins, frames) for Whisper, which takes one length only, two frames a position; else (frames, numbers
            of a frame), as Wav2Vec2-BERT, Speech2Text or Parakeet say them.
        frames: of those that take any number.
    """
    bins, positions = find_field(config, "num_mel_bins"), find_field(config, "max_source_positions")
    if bins and positions:
        return bins, 2 * positions
    channels = find_field(config, "input_feat_per_channel")
    size = bins or find_field(config, "feature_projection_input_dim")
    size = size or (channels and channels * find_field(config, "input_channels"))
    return (frames, size) if size else None


def find_field(config: Any, name: str) -> Any:
    """Return a field of the config or of the first sub-config that has it; None if there is none."""
    if getattr(config, name, None) is not None:
        return getattr(config, name)
    parts = [value for value in vars(config).values() if hasattr(value, "model_type") and hasattr(value, "to_dict")]
    return next((found for part in parts if (found := find_field(part, name)) is not None), None)
