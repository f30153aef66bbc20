"""How important each weight is: one function a criterion, all with the same signature.

Level: maths. Larger scores are kept. Scores of whole units are the L2 norm of the scores of their entries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_compress.registry import Registry

CRITERIA: Registry[Callable[[torch.Tensor], torch.Tensor]] = Registry("criterion")


@CRITERIA.register("magnitude")
def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Score each entry by its absolute value; same shape as `weight`, float32.

    Source: Han et al. 2015, "Learning both weights and connections", section 3.
    """
    return weight.detach().abs().float()
