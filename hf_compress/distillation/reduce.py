"""Which positions of a batch count, how many there are, and how a divergence over them is scaled.

Level: maths. This is the one place that knows label -100, the causal shift, padding, temperature and what kind of
outputs a head has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_compress.distillation.losses import Divergence

IGNORED = -100
# One prediction a sample, one a position, position t predicts label t + 1, a start and an end in each text.
ROWS, TOKENS, CAUSAL, SPANS = "rows", "tokens", "causal", "spans"
# One of several classes, any number of them, plain numbers.
SOFTMAX, SIGMOID, NUMBERS = "softmax", "sigmoid", "numbers"
# What a sum is divided by: predictions, tokens of the encoder or the only stack, of the decoder, whole samples.
PREDICTIONS, STATES, DECODER_STATES, WHOLE_ROWS = "predictions", "states", "decoder_states", "rows"
# Far below any logit and finite, so that what is impossible for both has no weight and gives no NaN.
_IMPOSSIBLE = -1e4


def valid_positions(batch: Mapping[str, torch.Tensor], alignment: str) -> torch.Tensor:
    """Mark the positions of the logits at which a prediction is asked for.

    Args:
        batch: model inputs; labels, `attention_mask` and the main input are looked at.
        alignment: ROWS, TOKENS, CAUSAL or SPANS.

    Returns:
        Bool tensor, shape (batch,) for ROWS and SPANS, otherwise (batch, length). Labels of -100, and spans that start
        outside the text, do not count; without labels every sample, or every position that is not padding, does.
    """
    labels = batch.get("labels")
    # Columns come in any order, and positions of answers have one dimension.
    main = next((value for value in batch.values() if value.dim() > 1), next(iter(batch.values())))
    if alignment == SPANS and batch.get("start_positions") is not None:
        return batch["start_positions"].view(len(main)) < main.shape[1]
    if alignment in (ROWS, SPANS):
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            return labels != IGNORED
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
    outputs: str = SOFTMAX,
) -> tuple[torch.Tensor, int]:
    """Return T^2 times the sum of `divergence` at the marked positions, and how many there are.

    The factor T^2 keeps the size of the gradient independent of the temperature. Of labels that are chosen
    independently (SIGMOID) the divergences of each label's two outcomes are averaged; of numbers (NUMBERS) the squared
    differences are, and there is no temperature.

    Args:
        divergence: takes two (rows, classes) tensors.
        student_logits: shape (*positions.shape, classes).
        teacher_logits: shape (*positions.shape, classes); if one of the two has more classes (a vocabulary that
            was padded further), the shared part counts.
        positions: bool.
        temperature: above 0.
        outputs: SOFTMAX, SIGMOID or NUMBERS.

    Source: Hinton et al. 2015, section 2.1.
    """
    return divergence_of_rows(divergence, student_logits[positions], teacher_logits[positions], temperature, outputs)


def divergence_of_rows(
    divergence: Divergence,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    outputs: str = SOFTMAX,
) -> tuple[torch.Tensor, int]:
    """Return T^2 x the divergence of logits divided by T, as `divergence_term`, for rows that all count."""
    shared = min(student_logits.shape[-1], teacher_logits.shape[-1])
    # float32 before the division: in 16 bit the quotient loses what tells the classes apart.
    student, teacher = student_logits[..., :shared].float(), teacher_logits[..., :shared].float()
    if outputs == NUMBERS:
        return (student - teacher.detach()).square().mean(-1).sum(), len(student)
    student, teacher = student / temperature, teacher / temperature
    if outputs == SIGMOID:
        total, _ = divergence(*(torch.stack([z, torch.zeros_like(z)], -1).view(-1, 2) for z in (student, teacher)))
        return total / shared * temperature**2, len(student)
    total, count = divergence(student, teacher)
    return total * temperature**2, count


def span_logits(logits: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the logits (batch, length) of a start or an end with padding made impossible."""
    return logits if attention_mask is None else logits.masked_fill(~attention_mask.bool(), _IMPOSSIBLE)


def token_mask(batch: Mapping[str, torch.Tensor], stack: str, length: int) -> tuple[torch.Tensor, str]:
    """Mark the tokens whose inner states count, and say what is counted.

    Args:
        batch: model inputs.
        stack: "decoder" of a model with two stacks; "encoder" or "" otherwise.
        length: of the states.

    Returns:
        Bool (batch, length), and the name of the count, as in `count_tokens`.
    """
    mask = _tokens(batch, stack)
    if mask is not None and mask.shape[1] == length:
        return mask, DECODER_STATES if stack == "decoder" else STATES
    main = next(iter(batch.values()))
    return torch.ones(len(main), length, dtype=torch.bool, device=main.device), WHOLE_ROWS


def count_tokens(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how many tokens and samples of a batch have inner states that count, by name, each 0-D."""
    main = next(iter(batch.values()))
    rows = torch.tensor(len(main), device=main.device)
    masks = {STATES: _tokens(batch, ""), DECODER_STATES: _tokens(batch, "decoder")}
    return {WHOLE_ROWS: rows} | {name: rows if mask is None else mask.sum() for name, mask in masks.items()}


def _tokens(batch: Mapping[str, torch.Tensor], stack: str) -> torch.Tensor | None:
    if stack != "decoder":
        mask = batch.get("attention_mask")
        return mask.bool() if mask is not None and mask.dim() == 2 else None
    if batch.get("decoder_attention_mask") is not None:
        return batch["decoder_attention_mask"].bool()
    labels = batch.get("labels")
    return labels != IGNORED if labels is not None and labels.dim() == 2 else None
