"""Training and evaluation mode of models, and the precision that training leaves around them.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and each of their parts back into its own afterwards.

    Frozen parts of a model in training may be in evaluation mode, and stay there.
    """
    before = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


@contextlib.contextmanager
def outside_training(*models: nn.Module) -> Iterator[None]:
    """Evaluate models as whoever loads them will: without the mixed precision that a Trainer leaves around `forward`.

    With `bf16` or `fp16` accelerate puts an autocast there, which outlives the training and would be compared, timed
    and exported. Afterwards it is there again, since training may go on.
    """
    # accelerate keeps the model's own there; its `extract_model_from_parallel` would take an fp8 model apart as well.
    own = "_original_forward"
    wrapped = [(m, m.forward) for m in models if vars(m).keys() >= {"forward", own}]
    for model, _ in wrapped:
        model.forward = vars(model)[own]
    try:
        with evaluating(*models):
            yield
    finally:
        for model, forward in wrapped:
            model.forward = forward
