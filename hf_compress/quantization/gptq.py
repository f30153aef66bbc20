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

    # optimum's GPTQQuantizer takes batches that are tokenized already.
    samples = [{n: t for n, t in batch.items() if n in ("input_ids", "attention_mask")} for batch in batches]
    return GPTQConfig(bits=4, group_size=config.group_size or -1, dataset=samples, tokenizer="")


def _bits(config: QuantizationConfig) -> float:
    # A scale in 16 bits and a zero point in 4 for each group.
    return 4 + (20 / config.group_size if config.group_size else 0)


SCHEMES.register("gptq")(Scheme(_gptq, _bits, ("gptqmodel",), frozenset({"group_size"}), is_calibrated=True))
