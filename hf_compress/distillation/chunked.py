"""A loss over the logits of a language-model head that never holds more than a few rows of them.

Level: maths. The gradient of each chunk is computed together with its loss, in the forward pass: one chunk of logits
is there at a time, and the head is multiplied three times, as often as without chunks.

Source: the order of computation is that of Liger Kernel's fused linear losses (Hsu et al. 2024), in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# Takes (logits of a chunk, its rows as a slice) and returns the loss, 0-D, and numbers to add up, detached.
ChunkLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


def chunked_head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, loss_of: ChunkLoss, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of `loss_of` over chunks of `hidden @ weight.T + bias`, with its gradient.

    Args:
        hidden: (rows, width).
        weight: (classes, width).
        bias: (classes,) or None.
        loss_of: the loss of one chunk, already scaled; called once a chunk, in order.
        chunk: rows at a time, at least 1.

    Returns:
        The loss, 0-D float32, and the sum of what `loss_of` gave beside it, detached.
    """
    return _ChunkedHeadLoss.apply(hidden, weight, bias, loss_of, chunk)


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, loss_of: ChunkLoss, chunk: int
    ) -> Any:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums of many chunks need float32, whatever the weights are.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        total: Any = torch.zeros((), device=hidden.device)
        numbers: Any = 0.0
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            logits = F.linear(hidden[rows], weight, bias)
            with torch.enable_grad():
                logits.requires_grad_()
                loss, beside = loss_of(logits, rows)
                (gradient,) = torch.autograd.grad(loss, logits)
            total, numbers = total + loss.detach().float(), numbers + beside
            del logits, loss
            if grad_hidden is not None:
                torch.mm(gradient, weight.to(gradient.dtype), out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(gradient.T.float(), hidden[rows].float())
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(numbers)
        return total, numbers

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        scaled = [None if g is None else g * upstream.to(g.dtype) for g in (hidden, weight, bias)]
        if scaled[1] is not None:
            scaled[1] = scaled[1].to(ctx.dtypes[0])
        if scaled[2] is not None:
            scaled[2] = scaled[2].to(ctx.dtypes[1])
        return (*scaled, None, None)
