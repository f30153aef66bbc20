"""What a forward pass of a config costs: counted without weights, or timed with made-up ones.

Level: state.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from hf_compress.architecture import probing
from hf_compress.architecture.verify import candidate_inputs

# Tokens of a text, where the model reads that many.
TEXT_LENGTH = 128
# Of a timed model: bytes at float32, and the least and most passes, and the seconds after which they end.
_LARGEST = 8e9
_PASSES, _SECONDS = (7, 50), 2.0


def forward_macs(model_class: type, config: Any) -> int | None:
    """Return the multiply-accumulate operations of one sample, as torch's own counter has them, on the meta device.

    Args:
        model_class: class of the model.
        config: its config; texts have 128 tokens, images and sounds the size that it says.

    Returns:
        Half the floating-point operations of matrix products, convolutions and attention; None where a forward pass
        looks at values, which there are none of.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = probing.build(model_class, config).eval()
    refusals: tuple[type[Exception], ...] = (*probing.build_errors(), NotImplementedError)
    for inputs in candidate_inputs(model, TEXT_LENGTH):
        try:
            with probing.quiet(), torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(**inputs)
        except refusals:
            continue
        return int(counter.get_total_flops()) // 2
    return None


def forward_milliseconds(model_class: type, config: Any, parameters: int) -> float | None:
    """Return the median time of a forward pass of one sample on the CPU, float32, made-up weights.

    Args:
        model_class: class of the model.
        config: its config; inputs as for `forward_macs`.
        parameters: number of parameters.

    Returns:
        Milliseconds; None where the model takes more than 8 GB or no input is known that it accepts.
    """
    if 4 * parameters > _LARGEST:
        return None
    with torch.random.fork_rng(devices=[]), probing.quiet():
        model = probing.build(model_class, config, "cpu").eval()
    for inputs in candidate_inputs(model, TEXT_LENGTH):
        try:
            with probing.quiet(), torch.inference_mode():
                model(**inputs)
        except probing.build_errors():
            continue
        return _median_milliseconds(model, inputs)
    return None


@torch.inference_mode()
def _median_milliseconds(model: Any, inputs: Any) -> float:
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < _PASSES[0] or (len(found) < _PASSES[1] and time.perf_counter() - start < _SECONDS):
        begin = time.perf_counter()
        model(**inputs)
        found.append(1000 * (time.perf_counter() - begin))
    return statistics.median(found)
