"""How the entries of one weight are grouped: blocks, rows, columns, and N:M groups.

Level: maths. A weight is looked at as a matrix (outputs, inputs, kernel); a kernel of more than one place (a
convolution's) belongs whole to its pair of output and input.
"""

from __future__ import annotations

import torch


def as_matrix(weight: torch.Tensor, input_dim: int) -> torch.Tensor:
    """View `weight` as (outputs, inputs, kernel).

    Args:
        weight: at least one dimension; of one with a single dimension the entries are the inputs of one output.
        input_dim: 0 or 1, the dimension of the inputs; the other one is that of the outputs.
    """
    if weight.dim() == 1:
        return weight.view(1, -1, 1)
    matrix = weight if input_dim == 1 else weight.transpose(0, 1)
    return matrix.flatten(2) if weight.dim() > 2 else matrix.unsqueeze(2)


def to_blocks(weight: torch.Tensor, input_dim: int, height: int, width: int) -> torch.Tensor:
    """Return the entries of each block of `height` outputs and `width` inputs: shape (blocks, entries of a block).

    Blocks go row by row; `height` must divide the outputs and `width` the inputs.
    """
    matrix = as_matrix(weight, input_dim)
    rows, columns, kernel = matrix.shape
    split = matrix.reshape(rows // height, height, columns // width, width, kernel)
    return split.transpose(1, 2).reshape(-1, height * width * kernel)


def from_blocks(keep: torch.Tensor, shape: torch.Size, input_dim: int, height: int, width: int) -> torch.Tensor:
    """Return the mask, shaped `shape`, of a weight whose blocks stay where `keep`, bool (blocks,), is True."""
    mask = torch.empty(shape, dtype=torch.bool, device=keep.device)
    matrix = as_matrix(mask, input_dim)
    rows, columns, _ = matrix.shape
    grid = keep.view(rows // height, columns // width)
    matrix.copy_(grid.repeat_interleave(height, 0).repeat_interleave(width, 1).unsqueeze(2))
    return mask


def protect_largest(scores: torch.Tensor, input_dim: int, keep: int, group: int) -> torch.Tensor:
    """Return `scores` with the `keep` largest of every `group` neighbours along the inputs raised to infinity.

    So at most `group` - `keep` of each group can be pruned, whatever number is asked for. Of equal scores the later
    entry is kept.

    Source: N:M sparsity, Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3.
    """
    moved = scores.movedim(input_dim if scores.dim() > 1 else 0, -1)
    grouped = moved.reshape(-1, group)
    # A stable sort tells the first of equal scores from the later ones.
    order = grouped.argsort(dim=1, stable=True)
    protected = grouped.scatter(1, order[:, group - keep :], torch.inf)
    return protected.view(moved.shape).movedim(-1, input_dim if scores.dim() > 1 else 0)


def reduce_units(entries: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return one score a unit from those of its entries, (units, entries) -> (units,), float32.

    Args:
        entries: scores.
        reduction: "rms", the root of the mean square, for scores that are sizes; "mean" for those that add up.
    """
    if entries.shape[1] == 1:
        return entries.reshape(-1)
    return entries.square().mean(1).sqrt() if reduction == "rms" else entries.mean(1)
