"""GPTQ (arXiv:2210.17323) by the package gptqmodel, in the format that stock transformers loads.

Level: state. The only user of gptqmodel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_compress.quantization.config import QuantizationConfig
from hf_compress.quantization.schemes import SCHEMES, Scheme


def _gptq(config: QuantizationConfig, skip: Sequence[str], batches: Sequence[Any]) -> Any:
    from transformers import GPTQConfig

    return GPTQConfig(bits=4, group_size=config.group_size or -1, modules_in_block_to_quantize=None)


SCHEMES.register("gptq")(Scheme(_gptq, {"gptqmodel": "7.0"}, frozenset({"group_size"}), is_calibrated=True))
