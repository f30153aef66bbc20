"""Scores of single weights from what passes through them, and the masks that follow.

Level: maths. A new criterion is one decorated function here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_compress.pruning.select import keep_largest
from hf_compress.registry import Registry

# Takes a matrix (outputs, inputs) and the L2 norm of each input over the samples (inputs,); returns scores like the
# matrix, higher is more important.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WEIGHT_CRITERIA: Registry[Score] = Registry("criterion of weights")


@WEIGHT_CRITERIA.register("magnitude")
def magnitude(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|w|."""
    return weight.abs()


@WEIGHT_CRITERIA.register("wanda")
def wanda(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|w| times the norm of its input.

    Source: Sun et al. 2024, "A simple and effective pruning approach for large language models", equation 1.
    """
    return weight.abs() * norms


@WEIGHT_CRITERIA.register("ria")
def ria(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """|w| relative to its output's and to its input's others, times the root of the norm of its input.

    Source: Zhang et al. 2024, "Plug-and-play: an efficient post-training pruning method for large language models",
        equation 4, with a = 1/2.
    """
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    by_output = size / size.sum(1, keepdim=True).clamp(min=tiny)
    by_input = size / size.sum(0, keepdim=True).clamp(min=tiny)
    return (by_output + by_input) * norms.sqrt()


def matrix_mask(scores: torch.Tensor, prune: int) -> torch.Tensor:
    """Return which entries stay, bool, when the `prune` lowest of the whole matrix go."""
    return keep_largest([scores], prune)[0]


def row_mask(scores: torch.Tensor, prune: int) -> torch.Tensor:
    """Return which entries stay, bool, when `prune` go in all, as many in each row.

    Args:
        scores: (rows, columns); of equal ones in a row the first goes.
        prune: 0 to the number of entries; if rows do not divide it, one more goes in each of the first rows.
    """
    each, more = divmod(prune, scores.shape[0])
    return torch.cat([_lowest_gone(scores[:more], each + 1), _lowest_gone(scores[more:], each)])


def _lowest_gone(scores: torch.Tensor, each: int) -> torch.Tensor:
    if each == 0 or not len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    stays = scores > scores.kthvalue(each, dim=1, keepdim=True).values
    if bool(((~stays).sum(1) == each).all()):
        return stays
    # Equal scores at the border: a sort, which costs several times as much, says which ones go.
    order = scores.argsort(dim=1, stable=True)
    return torch.ones_like(stays).scatter_(1, order[:, :each], False)


def group_mask(scores: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """Return which entries stay, bool, when the `keep` best of every `of` neighbours in a row stay.

    Args:
        scores: (rows, columns), columns divisible by `of`; of equal ones the first goes.
        keep: 1 to `of` - 1.
        of: size of a group.
    """
    grouped = scores.reshape(scores.shape[0], -1, of)
    gone = grouped.argsort(dim=2, stable=True)[..., : of - keep]
    return torch.ones_like(grouped, dtype=torch.bool).scatter_(2, gone, False).view_as(scores)
