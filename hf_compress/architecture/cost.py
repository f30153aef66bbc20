"""What a forward pass of a config costs, counted without weights.

Level: state.
"""

from __future__ import annotations

from typing import Any

import torch

from hf_compress.architecture import probing
from hf_compress.architecture.verify import candidate_inputs

# Tokens of a text, where the model reads that many.
TEXT_LENGTH = 128


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
