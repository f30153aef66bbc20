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

# Takes (float32 logits of a chunk, which it may overwrite, its rows as a slice) and returns the loss, 0-D, the
# gradient of the loss with respect to these logits, and numbers to add up over chunks.
ChunkLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
# Bytes of one chunk of float32 logits: small beside a head's gradient, large enough for whole matrix products.
_CHUNK_BYTES = {"cpu": 24 << 20, "other": 256 << 20}


def chunked_head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, loss_of: ChunkLoss, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of `loss_of` over chunks of `hidden @ weight.T + bias`, with its gradient.

    Args:
        hidden: (rows, width).
        weight: (classes, width).
        bias: (classes,) or None.
        loss_of: the loss of one chunk and its gradient, not divided by numbers that 16 bit could not take; called
            once a chunk, in order.
        chunk: rows at a time, at least 1.

    Returns:
        The loss, 0-D float32, and the sum of what `loss_of` gave beside it.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = bias.to(dtype) if bias is not None else None
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedHeadLoss.apply(hidden, weight, bias, loss_of, chunk)


def by_autograd(loss_of: Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]) -> ChunkLoss:
    """Return `loss_of`, which gives the loss and numbers to add up, with the gradient from autograd."""

    def one(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            loss, numbers = loss_of(logits.requires_grad_(), rows)
            (gradient,) = torch.autograd.grad(loss, logits)
        return loss.detach(), gradient, numbers.detach()

    return one


def after(transform: Callable[[torch.Tensor], torch.Tensor], loss_of: ChunkLoss) -> ChunkLoss:
    """Return `loss_of` for logits that pass through `transform`, a function of each logit alone, behind the head."""

    def one(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            changed = transform(logits.requires_grad_())
        loss, gradient, numbers = loss_of(changed.detach().clone(), rows)
        return loss, torch.autograd.grad(changed, logits, gradient)[0], numbers

    return one


def rows_at_a_time(classes: int, device: torch.device) -> int:
    """Return how many rows of logits fit a chunk of moderate size: 24 MiB of float32 on a CPU, 256 MiB elsewhere."""
    return max(16, _CHUNK_BYTES["cpu" if device.type == "cpu" else "other"] // (4 * classes))


class _ChunkedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, loss_of: ChunkLoss, chunk: int
    ) -> Any:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums of many chunks need float32, whatever the weights are.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        total: Any = torch.zeros((), device=hidden.device)
        numbers: Any = 0.0
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            logits = F.linear(hidden[rows], weight, bias).to(wide)
            loss, gradient, beside = loss_of(logits, rows)
            total, numbers = total + loss.to(wide), numbers + beside
            del logits
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[rows])
            if grad_weight is not None and wide == weight.dtype:
                grad_weight.addmm_(gradient.T, hidden[rows])
            elif grad_weight is not None:
                grad_weight += gradient.T @ hidden[rows]
        # Not `save_for_backward`: what it holds is copied once more into `.grad`.
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        numbers = torch.as_tensor(numbers, device=hidden.device)
        ctx.mark_non_differentiable(numbers)
        return total, numbers

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a chunked head can be asked for once only; run the forward pass again")
        gradients, ctx.gradients = ctx.gradients, None
        # In place: a second one of a head is what chunks are there to avoid.
        scaled = (
            None if g is None else g.mul_(upstream.to(g.dtype)).to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None)
