"""Adapters that make good what quantization took: started from its error, trained, kept or merged.

Level: state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.errors import ConfigError, QuantizationError
from hf_compress.imports import require
from hf_compress.measurement import load
from hf_compress.output import copy_companions, free_folder, whole_folder
from hf_compress.quantization.bnb import dequantize, protect_4bit, quantized_layers

INITIAL = ("loftq", "zero")


def recovery_adapter(
    quantized: str | Path, source: str | Path, *, rank: int = 16, initial: str = "loftq", dropout: float = 0.0
) -> Any:
    """Return the quantized model with a LoRA adapter on each of its quantized layers, to be trained.

    Train it with `DistillationTrainer(model, ..., teacher=source)`: the quantized weights stay, the adapter learns
    what the 16-bit model says (QLoRA, arXiv:2305.14314).

    Args:
        quantized: folder that `quantize` wrote with int8, nf4 or fp4.
        source: folder of the plain model that it was made from.
        rank: of the adapter, at least 1.
        initial: "loftq" starts at the best approximation of what quantization took, by singular values (LoftQ,
            arXiv:2310.08659, eq. 8); "zero" starts at the quantized model.
        dropout: of the adapter's inputs, 0 to 1.

    Returns:
        A PEFT model.

    Raises:
        ConfigError: if a folder is no saved model, or an option is wrong.
        QuantizationError: if `quantized` has no layers of bitsandbytes, or `source` is quantized or another model.
    """
    require("peft", "adapters on quantized models")
    if initial not in INITIAL or rank < 1:
        raise ConfigError(
            f"initial must be one of {', '.join(INITIAL)} and rank at least 1, found {initial!r} and {rank}"
        )
    from peft import LoraConfig, get_peft_model

    model = protect_4bit(load.load_model(quantized))
    names = list(quantized_layers(model))
    if not names:
        raise QuantizationError(f"{Path(quantized).name} has no layers quantized by bitsandbytes: int8, nf4 or fp4")
    # alpha equal to the rank: the product counts as it is.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=names)
    adapted = get_peft_model(model, config)
    if initial == "loftq":
        for layer, (low, high) in _errors(adapted, source).items():
            layer.lora_A["default"].weight.data.copy_(low)
            layer.lora_B["default"].weight.data.copy_(high)
    return adapted


def merge_recovered(model: Any, source: str | Path, output: str | Path, *, initial: str = "loftq") -> Path:
    """Write the plain model with what the adapter has learnt added to its 16-bit weights, to be quantized again.

    The quantized weights with the adapter would lose it: their sum is rounded to nearly the same codes.

    Args:
        model: of `recovery_adapter`, trained.
        source: folder of the plain model.
        output: folder to make; it must not exist or be empty.
        initial: what the adapter started from; that part is an error of rounding and not added.

    Returns:
        `output`.

    Raises:
        OutputExistsError: if `output` already holds something.
        ConfigError: if `initial` is wrong.
        QuantizationError: if `source` is quantized or another model.
    """
    if initial not in INITIAL:
        raise ConfigError(f"initial must be one of {', '.join(INITIAL)}, found {initial!r}")
    output = free_folder(output)
    plain = _plain(source)
    starts = _errors(model, source) if initial == "loftq" else {}
    with torch.no_grad():
        for name, layer in _adapters(model):
            learnt = layer.get_delta_weight("default").cpu().float()
            if layer in starts:
                low, high = starts[layer]
                learnt = learnt - high @ low
            weight = plain.get_submodule(name).weight
            weight.add_((learnt.T if weight.shape != learnt.shape else learnt).to(weight.dtype))
    with whole_folder(output) as part:
        plain.save_pretrained(part)
        copy_companions(Path(source), part)
    return output


def _adapters(model: Any) -> list[tuple[str, Any]]:
    found = model.get_base_model().named_modules()
    return [(name, module) for name, module in found if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def _plain(source: str | Path) -> nn.Module:
    if load.is_quantized(source):
        raise QuantizationError(f"{Path(source).name} is quantized; give the 16- or 32-bit model it was made from")
    return load.load_model(source, "cpu")


@torch.no_grad()
def _errors(model: Any, source: str | Path) -> dict[Any, tuple[torch.Tensor, torch.Tensor]]:
    """Return for each adapter the factors, (rank, inputs) and (outputs, rank), nearest to what quantization took."""
    weights = dict(_plain(source).named_parameters())
    found = {}
    for name, layer in _adapters(model):
        stored, weight = dequantize(layer.base_layer).cpu().float(), weights.get(f"{name}.weight")
        if weight is None or weight.shape not in (stored.shape, stored.T.shape):
            raise QuantizationError(f"{Path(source).name} is not what this model was quantized from: see {name}")
        error = (weight if weight.shape == stored.shape else weight.T).float() - stored
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        rank = layer.r["default"]
        root = values[:rank].sqrt()
        low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        # A layer may be smaller than the rank.
        factors = torch.zeros(low.shape), torch.zeros(high.shape)
        factors[0][: len(root)] = root[:, None] * right[:rank]
        factors[1][:, : len(root)] = left[:, :rank] * root
        found[layer] = factors
    return found
