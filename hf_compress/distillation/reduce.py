"""Which positions of a batch count, how many there are, and how a divergence over them is scaled.

Level: maths. This is the one place that knows label -100, the causal shift, padding and temperature.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_compress.distillation.losses import Divergence

IGNORED = -100
ROWS, TOKENS, CAUSAL = "rows", "tokens", "causal"


def valid_positions(batch: Mapping[str, torch.Tensor], alignment: str) -> torch.Tensor:
    """Mark the positions of the logits at which a prediction is asked for.

    Args:
        batch: model inputs; `labels`, `attention_mask` and the main input are looked at.
        alignment: "rows" (one prediction a sample), "tokens" (one a position), or "causal" (position t predicts
            label t + 1).

    Returns:
        Bool tensor, shape (batch,) for "rows", otherwise (batch, length). Labels of -100 do not count; without
        labels every sample, or every position that is not padding, does.
    """
    labels = batch.get("labels")
    if alignment == ROWS:
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            return labels != IGNORED
        main = next(iter(batch.values()))
        return torch.ones(len(main), dtype=torch.bool, device=main.device)
    if labels is not None:
        valid = labels != IGNORED
    elif batch.get("decoder_input_ids") is not None:
        valid = torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool)
    elif batch.get("attention_mask") is not None:
        valid = batch["attention_mask"].bool()
    else:
        valid = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if alignment == CAUSAL:
        valid = torch.cat([valid[..., 1:], torch.zeros_like(valid[..., :1])], dim=-1)
    return valid


def divergence_term(
    divergence: Divergence,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    positions: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, int]:
    """Return T^2 times the sum of `divergence` at the marked positions, and how many there are.

    The factor T^2 keeps the size of the gradient independent of the temperature.

    Args:
        divergence: takes two (rows, classes) tensors.
        student_logits: shape (*positions.shape, classes).
        teacher_logits: shape (*positions.shape, classes); if one of the two has more classes (a vocabulary that
            was padded further), the shared part counts.
        positions: bool.
        temperature: above 0.

    Source: Hinton et al. 2015, section 2.1.
    """
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    # float32 before the division: in 16 bit the quotient loses what tells the classes apart.
    student = student_logits[..., :shared][positions].float() / temperature
    teacher = teacher_logits[..., :shared][positions].float() / temperature
    total, count = divergence(student, teacher)
    return total * temperature**2, count
