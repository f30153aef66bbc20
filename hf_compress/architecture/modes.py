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
    from accelerate.utils import extract_model_from_parallel

    names = ("forward", "_original_forward")
    wrapped = [(m, {n: vars(m)[n] for n in names}) for m in models if vars(m).keys() >= set(names)]
    for model, _ in wrapped:
        extract_model_from_parallel(model, keep_fp32_wrapper=False)
    try:
        with evaluating(*models):
            yield
    finally:
        for model, found in wrapped:
            vars(model).update(found)
