"""Schemes of torchao, through transformers' `TorchAoConfig`.

Level: state. The only user of torchao.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.rounding import round_groups
from hf_compress.quantization.schemes import SCHEMES, Scheme, is_transposed, linear_inputs

_PACKAGES = ("torchao",)


def _wrap(quant_type: Any, skip: Sequence[str]) -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(quant_type, modules_to_not_convert=list(skip))


def _round_8_bits(weight: torch.Tensor, config: QuantizationConfig) -> torch.Tensor:
    return round_groups(weight, 8, None)


def _round_4_bits(weight: torch.Tensor, config: QuantizationConfig) -> torch.Tensor:
    return round_groups(weight, 4, config.group_size)


def _transposed(module: nn.Module, config: QuantizationConfig) -> str:
    # transformers leaves them as they are with torchao, without a word.
    return "its weight is transposed, which torchao does not take" if is_transposed(module) else ""


def _no_groups(module: nn.Module, config: QuantizationConfig) -> str:
    if is_transposed(module):
        return _transposed(module, config)
    inputs = linear_inputs(module)
    if config.group_size is None or inputs % config.group_size == 0:
        return ""
    return f"its {inputs} inputs are no multiple of the group size {config.group_size}"


def _refuses(model: Any) -> str:
    # transformers asks for them while it loads; torchao splits names at their last dot.
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        return "transformers loads torchao's codes only into models that name their input embeddings"
    outside = [name for name in model.state_dict() if "." not in name]
    return f"torchao cannot load a model with a tensor outside of its modules ({outside[0]})" if outside else ""


def _bits(config: QuantizationConfig) -> float:
    # Scale and zero point of each group; codes take a byte each, those of 4 bits too.
    return 8.0 if config.scheme != "torchao-int4" or config.group_size is None else 8 + 40 / config.group_size


def _group(config: QuantizationConfig) -> int | None:
    return config.group_size


def _int8(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return _wrap(Int8WeightOnlyConfig(), skip)


def _int8_dynamic(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _wrap(Int8DynamicActivationInt8WeightConfig(), skip)


def _int4(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis, PerGroup

    group = PerAxis(0) if config.group_size is None else PerGroup(config.group_size)
    return _wrap(IntxWeightOnlyConfig(torch.int4, group), skip)


_ROWS: dict[str, Any] = {"rounds": _round_8_bits, "unfit": _transposed, "refuses": _refuses, "levels": 127.5}
SCHEMES.register("torchao-int8")(Scheme(_int8, _bits, _PACKAGES, **_ROWS))
SCHEMES.register("torchao-int8-dynamic")(Scheme(_int8_dynamic, _bits, _PACKAGES, **_ROWS, activations="dynamic"))
# Codes of 4 bits, stored in a byte each: what the runtimes of torchao unpack on a CPU.
SCHEMES.register("torchao-int4")(
    Scheme(
        _int4,
        _bits,
        _PACKAGES,
        frozenset({"group_size"}),
        rounds=_round_4_bits,
        unfit=_no_groups,
        refuses=_refuses,
        group=_group,
    )
)
