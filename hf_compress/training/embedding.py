"""`EmbeddingTrainer`: trains the mean-pooled embedding of a plain model towards given ones.

Level: glue.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_compress.errors import ConfigError, DataError
from hf_compress.training.mixin import CompressionMixin

LOSSES = ("cosine", "mse")


def mean_pooled(outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of the last hidden states (batch, tokens, width) over tokens that are no padding."""
    states = outputs.last_hidden_state
    if attention_mask is None:
        return states.mean(1)
    weights = attention_mask.to(states.device, states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


class _EmbeddingLoss(Trainer):
    """A Trainer of models without a head, whose `labels` are embeddings (batch, width).

    Args:
        *args: of `Trainer`.
        embedding_loss: "cosine": 1 - cosine of both; "mse": the mean squared difference.
        **kwargs: of `Trainer`.

    Raises:
        ConfigError: for another loss.
    """

    def __init__(self, *args: Any, embedding_loss: str = "cosine", **kwargs: Any) -> None:
        if embedding_loss not in LOSSES:
            raise ConfigError(f"embedding_loss must be one of {', '.join(LOSSES)}, found {embedding_loss!r}")
        super().__init__(*args, **kwargs)
        self.embedding_loss = embedding_loss
        # Models without a head name no labels, and the loss below is the mean of its batch.
        self.label_names = ["labels"]
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean distance of the embeddings of a batch from those in `labels`.

        Raises:
            DataError: if these have another width.
        """
        wanted = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        found = mean_pooled(outputs, inputs.get("attention_mask")).float()
        if found.shape != wanted.shape:
            raise DataError(
                f"the model's embeddings have width {found.shape[-1]}, those to learn {wanted.shape[-1]}; take a "
                "student with the width of its teacher: make_student removes layers and neurons only"
            )
        if self.embedding_loss == "mse":
            loss = nn.functional.mse_loss(found, wanted.float())
        else:
            loss = (1 - nn.functional.cosine_similarity(found, wanted.float())).mean()
        return (loss, {"loss": loss, "embeddings": found}) if return_outputs else loss


class EmbeddingTrainer(CompressionMixin, _EmbeddingLoss):
    """`CompressionTrainer` of models without a head: `labels` of the rows are the embeddings to learn."""
