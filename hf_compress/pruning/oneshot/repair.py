"""Least squares for the matrix that reads what is left, so that it makes what it made of all.

Level: maths.
"""

from __future__ import annotations

import torch


class Regression:
    """Sums up the normal equations of a linear layer with an intercept, in float64.

    Args:
        inputs: number of its inputs.
        outputs: number of its outputs.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self._gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._cross = torch.zeros(inputs, outputs, dtype=torch.float64)
        self._inputs = torch.zeros(inputs, dtype=torch.float64)
        self._outputs = torch.zeros(outputs, dtype=torch.float64)

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Take in rows: what the layer is given, (rows, inputs), and what it shall make, (rows, outputs)."""
        x, y = inputs.double().cpu(), outputs.double().cpu()
        self.count += len(x)
        self._gram += x.T @ x
        self._cross += x.T @ y
        self._inputs += x.sum(0)
        self._outputs += y.sum(0)

    def solve(
        self, weight: torch.Tensor, bias: torch.Tensor | None, ridge: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weight and bias of least squared error, drawn towards those of now.

        Args:
            weight: of now, (outputs, inputs).
            bias: of now, (outputs,); None: without.
            ridge: strength of the draw, in units of the mean variance of the inputs, above 0.

        Returns:
            `argmin |X W' - Y|^2 + ridge * mean(diag(X'X)) * |W' - W|^2`, about the means where there is a bias.
        """
        gram, cross = self._gram, self._cross
        mean_x, mean_y = self._inputs / self.count, self._outputs / self.count
        if bias is not None:
            gram = gram - self.count * torch.outer(mean_x, mean_x)
            cross = cross - self.count * torch.outer(mean_x, mean_y)
        strength = ridge * float(gram.diagonal().mean().clamp(min=1e-12))
        old = weight.detach().double().cpu().T
        new = torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=gram.dtype), cross + strength * old)
        moved = None if bias is None else (mean_y - mean_x @ new).to(bias)
        return new.T.to(weight), moved
