"""Sentence embeddings: a smaller model learns the embeddings of a larger one.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_rows
from hf_compress.recipes.metrics import spearman
from hf_compress.recipes.task import TASKS, Task, forward_batches, load_tokenizer
from hf_compress.training.embedding import EmbeddingTrainer, mean_pooled

_BATCH = 64
# Texts whose similarities to each other are ranked: all pairs of so many.
_RANKED = 1000


@TASKS.register("sentence-embeddings")
def sentence_embeddings(config: TaskConfig, processor_source: str | None) -> Task:
    """The mean-pooled embeddings of `embedding_model`, which reads each text once, at the start."""
    from transformers import DataCollatorWithPadding

    if config.embedding_model is None:
        raise DataError("sentence-embeddings needs embedding_model: the model whose embeddings are learnt")
    column = (config.text_columns or ("text",))[0]
    splits = load_rows(config, (column,))
    tokenizer = load_tokenizer(config.type, processor_source)

    def encode(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return tokenizer(batch[column], truncation=True, max_length=config.max_length)

    rows = {}
    for name, part in splits.rows.items():
        wanted = embed(config.embedding_model, part[column][:], config.max_length)
        coded = part.map(encode, batched=True, remove_columns=part.column_names, desc=f"tokenize {name}")
        rows[name] = coded.add_column("labels", list(wanted)).with_format("torch")
    collator = DataCollatorWithPadding(tokenizer)

    def quality(model: Any, split: str) -> dict[str, float]:
        batches = forward_batches(model, rows[split], collator)
        pairs = [(mean_pooled(o, b["attention_mask"]).float().cpu(), b["labels"]) for o, b in batches]
        found, right = (torch.cat(part).numpy() for part in zip(*pairs, strict=True))
        return embedding_metrics(found, right)

    return Task(
        auto_class="AutoModel",
        pipeline_tag="sentence-similarity",
        rows=rows,
        labels=(),
        collator=collator,
        processing_class=tokenizer,
        source=splits.source,
        arguments={"train_sampling_strategy": "group_by_length"},
        quality=quality,
        trainer_metrics=lambda p: embedding_metrics(p.predictions, p.label_ids),
        trainer_class=EmbeddingTrainer,
    )


def embed(source: str, texts: Sequence[str], length: int) -> np.ndarray:
    """Return the mean-pooled embeddings (texts, width) of a model, float32.

    Args:
        source: Hub id or folder of the model and its tokenizer.
        texts: to read.
        length: most tokens of a text.
    """
    from transformers import AutoModel, AutoTokenizer

    from hf_compress.measurement.environment import default_device

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = AutoModel.from_pretrained(source, trust_remote_code=False).to(default_device()).eval()
    # Sorted by length, so that little is padded.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, np.ndarray] = {}
    for first in range(0, len(order), _BATCH):
        chosen = order[first : first + _BATCH]
        options = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
        batch = tokenizer([texts[i] for i in chosen], **options).to(model.device)
        with torch.inference_mode():
            pooled = mean_pooled(model(**batch), batch["attention_mask"]).float().cpu().numpy()
        found.update(zip(chosen, pooled, strict=True))
    return np.stack([found[i] for i in range(len(texts))])


def embedding_metrics(found: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return the mean cosine of embeddings with those that they should be, and how alike they rank pairs of texts.

    Args:
        found: (texts, width).
        right: (texts, another width perhaps; then there is no cosine between both).

    Returns:
        "cosine" and "spearman" of the cosines of all pairs of the first 1,000 texts.
    """
    one, other = (e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12) for e in (found, right))
    upper = np.triu_indices(min(len(one), _RANKED), 1)
    ranks = spearman(*((e[:_RANKED] @ e[:_RANKED].T)[upper] for e in (one, other))) if len(one) > 1 else 0.0
    same = {"cosine": float((one * other).sum(1).mean())} if one.shape == other.shape else {}
    return {**same, "spearman": ranks}
