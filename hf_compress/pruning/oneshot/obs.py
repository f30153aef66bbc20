"""Optimal brain surgeon, column by column: which weights of a matrix go, and what the others become.

Level: maths.
"""

from __future__ import annotations

import torch

from hf_compress.pruning.oneshot.scores import group_mask, matrix_mask

# Columns whose updates of each other are made one by one, before those behind them follow at once.
_INNER = 16


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the Hessian with part of the mean of its diagonal added to it; the identity where all inputs were zero.

    Args:
        hessian: X^T X of the inputs, (inputs, inputs).
        damping: the part, above 0.
    """
    found = hessian.clone()
    mean = float(found.diagonal().mean())
    found.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return found


def inverse_root(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular U with U^T U = H^-1.

    Args:
        hessian: symmetric and positive definite.

    Raises:
        torch.linalg.LinAlgError: if it is not.
    """
    # One after the other into the same name: of a wide layer each is as large as all its weights.
    found = torch.linalg.cholesky(hessian)
    del hessian
    found = torch.cholesky_inverse(found)
    return torch.linalg.cholesky(found, upper=True)


def sparsegpt(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    *,
    prune: int,
    n_of_m: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> torch.Tensor:
    """Return the matrix with weights set to zero, and what is right of each changed to make good for it.

    Args:
        weight: (outputs, inputs), float32.
        hessian: X^T X of the inputs, (inputs, inputs), float32.
        prune: how many entries go in all, the same share of every `block` columns.
        n_of_m: instead keep N of every M neighbours along the inputs.
        damping: part of the mean diagonal that is added to it, above 0.
        block: columns of which the least important are found at once.

    Source: Frantar and Alistarh 2023, "SparseGPT", algorithm 1.
    """
    weight = weight.clone()
    root = inverse_root(damped(hessian, damping))
    rows, columns = weight.shape
    if n_of_m:
        block = max(n_of_m[1], block // n_of_m[1] * n_of_m[1])
    gone = 0
    for first in range(0, columns, block):
        last = min(first + block, columns)
        share = round(prune * last / columns) - gone
        gone += share
        errors = _eliminate(weight[:, first:last], root[first:last, first:last], share, n_of_m)
        weight[:, last:] -= errors @ root[first:last, last:]
    return weight


def _eliminate(part: torch.Tensor, root: torch.Tensor, prune: int, n_of_m: tuple[int, int] | None) -> torch.Tensor:
    """Set entries of some columns to zero, in place; returns what columns further right must make good."""
    diagonal = root.diagonal()
    width = part.shape[1]
    errors = torch.zeros_like(part)
    stays = torch.ones_like(part, dtype=torch.bool)
    if n_of_m is None:
        stays = matrix_mask(part.square() / diagonal.square(), prune)
    step = _INNER if n_of_m is None else n_of_m[1] * max(1, _INNER // n_of_m[1])
    for first in range(0, width, step):
        last = min(first + step, width)
        for column in range(first, last):
            if n_of_m is not None and column % n_of_m[1] == 0:
                group = slice(column, column + n_of_m[1])
                stays[:, group] = group_mask(part[:, group].square() / diagonal[group].square(), *n_of_m)
            error = part[:, column].masked_fill(stays[:, column], 0) / diagonal[column]
            errors[:, column] = error
            part[:, column:last] -= torch.outer(error, root[column, column:last])
        part[:, last:] -= errors[:, first:last] @ root[first:last, last:]
    part.masked_fill_(~stays, 0)
    return errors


def refined(
    weight: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor, *, steps: int, damping: float = 0.01
) -> torch.Tensor:
    """Return the weights that come nearer to the dense outputs with the same zeros, by conjugate gradients.

    Minimises tr((W - D) H (W - D)^T) over the entries of W that are not zero; each row is a problem of its own.

    Args:
        weight: (outputs, inputs), with zeros.
        dense: the matrix before.
        hessian: X^T X of the inputs.
        steps: of conjugate gradients with the diagonal as preconditioner; 0 returns `weight`.
        damping: as in `sparsegpt`.

    Source: Meng et al. 2024, "ALPS: improved optimization for highly sparse one-shot pruning", section 3.3.
    """
    matrix = damped(hessian, damping)
    support = weight != 0
    scale = matrix.diagonal()
    solution = weight.clone()
    residual = ((dense - solution) @ matrix) * support
    direction = residual / scale
    along = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ matrix) * support
        length = along / (direction * image).sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        solution += length * direction
        residual -= length * image
        scaled = residual / scale
        new = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + new / along.clamp(min=torch.finfo(weight.dtype).tiny) * direction
        along = new
    return solution
