"""A language model's training step without its logits: the head's losses are computed chunk by chunk.

Level: glue. The model runs as always, wrapped as it is, but for its head, which computes the loss where it would have
made logits; so the weights are there under any sharding, and what it returns keeps the model's graph whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer

from hf_compress.architecture.decoder import without_labels
from hf_compress.architecture.modes import evaluating
from hf_compress.distillation.chunked import after, chunked_head_loss, rows_at_a_time
from hf_compress.distillation.ensemble import TeacherEnsemble
from hf_compress.distillation.head import LanguageHead, few_tokens, require_rows
from hf_compress.distillation.objective import Term
from hf_compress.distillation.reduce import CAUSAL, ROWS, SPANS, valid_positions
from hf_compress.distillation.teacher import LABELS, has_vocabulary_head, logits_of
from hf_compress.errors import ConfigError

logger = logging.getLogger(__name__)

# Below, whole logits are small, and chunks gain nothing.
_LARGE_VOCABULARY = 4096


@dataclass(frozen=True)
class ChunkedTerms:
    """The loss of a micro-batch's logits, in sums.

    Args:
        total: of both parts with their weights, 0-D, with gradient.
        task: sum of the loss on labels, 0-D; None without labels.
        divergence: sum of the divergence, 0-D.
        count: of the predictions that count, 0-D.
        layers: terms of the layers, by name.
    """

    total: torch.Tensor
    task: torch.Tensor | None
    divergence: torch.Tensor
    count: torch.Tensor
    layers: dict[str, Term]


class ChunkedLoss:
    """Runs micro-batches of `trainer` without logits.

    Args:
        trainer: whose model it is.
        objective: the teachers' terms.
        alignment: of predictions and labels; see `distillation.reduce`.
        chunk_size: rows at a time; None to choose.
    """

    def __init__(self, trainer: Any, objective: TeacherEnsemble, alignment: str, chunk_size: int | None) -> None:
        self.trainer = trainer
        self.objective = objective
        self.alignment = alignment
        self.head = LanguageHead(_plain(trainer.model))
        self.chunk_size = chunk_size or rows_at_a_time(self.head.layer.out_features, trainer.args.device)
        self._is_tried = False

    def fits(self, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Return whether this works for `model`; found out on a few tokens of the first batch.

        Raises:
            ConfigError: if it does not, and `chunk_size` asked for it.
        """
        if not self._is_tried:
            problem = self._try_out(model, inputs)
            if problem and self.objective.config.chunk_size:
                raise ConfigError(f"DistillationConfig: chunk_size: {problem}; set it to 0")
            if problem:
                logger.warning("logits are made whole, which takes memory: %s", problem)
            self._is_tried, self._fits = True, not problem
        return self._fits

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], has_task: bool, progress: float) -> ChunkedTerms:
        """Run `model` on a micro-batch; `progress` is how much of training is done, 0-1."""
        batch = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        positions = valid_positions(batch, self.alignment)
        labels = None
        if has_task:
            labels = (batch["labels"].roll(-1, 1) if self.alignment == CAUSAL else batch["labels"])[positions]
        without = self._without_labels(inputs)
        # With labels, which a cache may know the example by; a model that gets decoder inputs does not see them.
        asked = {**inputs, **without}
        expected = [objective.expect(asked, is_chunked=True) for objective in self.objective.objectives]
        smoothing = self.trainer.args.label_smoothing_factor
        loss_of = self.objective.chunk_loss(expected, positions, labels, progress, smoothing)
        if self.head.transform is not None:
            loss_of = after(self.head.transform, loss_of)
        found: list[torch.Tensor] = []

        @torch.compiler.disable
        def forward(hidden: torch.Tensor) -> torch.Tensor:
            require_rows(hidden, positions, "student")
            layer = self.head.layer
            found.extend(chunked_head_loss(hidden[positions], layer.weight, layer.bias, loss_of, self.chunk_size))
            return found[0].reshape(1, 1, 1).to(hidden.dtype)

        with self.objective.watching() as seen, self.head.replaced(forward):
            outputs = model(**without, **self.objective.asks())
        total, sums = found
        # Without a position that counts nothing was added up.
        task, divergence = sums if sums.dim() else (sums, sums)
        # Nothing is added; but the hooks of sharded models wait for a gradient of what the model returned.
        total = total + 0.0 * logits_of(outputs).float().sum()  # type: ignore[union-attr]
        layers = self.objective.layer_terms(outputs, seen, expected, batch)
        return ChunkedTerms(total, task if has_task else None, divergence, positions.sum(), layers)

    def _without_labels(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = without_labels(_plain(self.trainer.model), inputs)
        return {k: v for k, v in found.items() if k not in LABELS and k not in self.objective.teachers_own}

    def _try_out(self, model: nn.Module, inputs: Mapping[str, Any]) -> str:
        """Return why the loss of a few tokens is not what the model itself says, "" if it is."""
        few = few_tokens(inputs)
        without = self._without_labels(few)
        for objective in self.objective.objectives:
            teacher = objective.teacher
            problem = teacher.try_head(without)
            if problem:
                return "the teacher: " + problem
        with evaluating(model), torch.no_grad():
            logits = self.head.try_out(lambda batch: model(**batch), without)
            if logits is None:
                return self.head.problem
            if not any(name in inputs for name in self.trainer.label_names):
                return ""
            labels = few["labels"].roll(-1, 1) if self.alignment == CAUSAL else few["labels"]
            positions = valid_positions(few, self.alignment)
            stock, ours = model(**few)["loss"], F.cross_entropy(logits[positions], labels[positions])
        if not torch.allclose(stock.float(), ours, rtol=2e-2, atol=1e-3, equal_nan=True):
            return f"the model's own loss is not plain cross-entropy of its logits ({stock:.4g}, not {ours:.4g})"
        return ""


def chunked_loss(trainer: Any, objective: TeacherEnsemble, alignment: str) -> ChunkedLoss | None:
    """Return how to run `trainer` without logits; None where whole logits are small, or needed by something.

    Raises:
        ConfigError: if `chunk_size` asks for what cannot be done.
    """
    asked = objective.config.chunk_size
    if asked == 0 or (asked is None and not _is_large(trainer.model)):
        return None
    problem = _problem(trainer, objective, alignment)
    if not problem:
        return ChunkedLoss(trainer, objective, alignment, asked)
    if asked:
        raise ConfigError(f"DistillationConfig: chunk_size: {problem}; set it to 0")
    logger.info("logits are made whole: %s", problem)
    return None


def _problem(trainer: Any, objective: TeacherEnsemble, alignment: str) -> str:
    from hf_compress.training.mixin import CompressionMixin

    own = getattr(super(CompressionMixin, trainer).compute_loss, "__func__", None)
    head = LanguageHead(_plain(trainer.model)) if has_vocabulary_head(trainer.model) else None
    reasons = {
        "the model has no language-model head": head is None or alignment in (ROWS, SPANS),
        "its head is not a plain linear layer": head is not None and not head.is_plain,
        "logit_weight is 0": objective.config.logit_weight == 0,
        "compute_loss_func needs whole logits": trainer.compute_loss_func is not None,
        f"{type(trainer).__name__}.compute_loss may need whole logits": own is not Trainer.compute_loss,
        "DeepSpeed was not tried with it": bool(trainer.args.deepspeed),
        "the model adds a loss on its routers": getattr(
            getattr(trainer.model, "config", None), "output_router_logits", False
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _plain(model: nn.Module) -> Any:
    # The wrappers of processes and shards hand attributes of the model inside on, or have it as `module`.
    return getattr(model, "module", model)


def _is_large(model: Any) -> bool:
    return (
        has_vocabulary_head(model) and getattr(model.get_output_embeddings(), "out_features", 0) >= _LARGE_VOCABULARY
    )
