"""Training and evaluation mode of models.

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
