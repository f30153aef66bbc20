"""Labels of words: named entities, parts of speech.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from hf_compress.errors import DataError
from hf_compress.imports import require
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_splits
from hf_compress.recipes.metrics import is_entity_scheme, tag_metrics
from hf_compress.recipes.task import TASKS, Task, forward_batches, label_order, load_tokenizer

_IGNORED = -100


def first_token_labels(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Return a label for each token: that of its word at the first token of the word, -100 elsewhere.

    Args:
        words: number of the word that each token belongs to, None for special tokens.
        tags: label of each word.
    """
    before = [None, *words[:-1]]
    return [tags[w] if w is not None and w != b else _IGNORED for w, b in zip(words, before, strict=True)]


@TASKS.register("token-classification")
def token_classification(config: TaskConfig, processor_source: str | None) -> Task:
    """One class a word of a list of words; words beyond `max_length` tokens are left out."""
    from transformers import DataCollatorForTokenClassification

    column, label = (config.text_columns or ("tokens",))[0], config.label_column or "ner_tags"
    splits = load_splits(config, (column,), label)
    for name, part in splits.rows.items():
        _require_aligned(part, column, label, name)
    names, entities = splits.labels, is_entity_scheme(splits.labels)
    if entities:
        require("seqeval", "scores of entities")
    tokenizer = load_tokenizer(config.type, processor_source)
    if getattr(tokenizer, "add_prefix_space", None) is False:
        # Byte-level tokenizers (RoBERTa's, GPT-2's) would write the words of a list together.
        tokenizer = load_tokenizer(config.type, processor_source, add_prefix_space=True)
    if not tokenizer.is_fast:
        raise DataError("token-classification needs a fast tokenizer, which knows the word of each token")

    def encode(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        encoded = tokenizer(batch[column], is_split_into_words=True, truncation=True, max_length=config.max_length)
        labels = [first_token_labels(encoded.word_ids(i), tags) for i, tags in enumerate(batch[label])]
        return {**encoded, "labels": labels}

    rows = {
        name: part.map(encode, batched=True, remove_columns=part.column_names, desc=f"tokenize {name}")
        for name, part in splits.rows.items()
    }
    collator = DataCollatorForTokenClassification(tokenizer)

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        found: list[list[str]] = []
        right: list[list[str]] = []
        order = label_order(model, names)
        for outputs, batch in forward_batches(model, rows[split], collator):
            logits = outputs.logits if order is None else outputs.logits[..., order]
            one, other = _tags(logits.argmax(-1).cpu().numpy(), batch["labels"].numpy(), names)
            found, right = found + one, right + other
        return tag_metrics(found, right, entities)

    return Task(
        auto_class="AutoModelForTokenClassification",
        pipeline_tag="token-classification",
        rows=rows,
        labels=names,
        collator=collator,
        processing_class=tokenizer,
        source=splits.source,
        arguments={"train_sampling_strategy": "group_by_length"},
        quality=quality,
        trainer_metrics=lambda p: tag_metrics(*_tags(p.predictions.argmax(-1), p.label_ids, names), entities),
    )


def _tags(found: np.ndarray, right: np.ndarray, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the predicted and the true tag of each labelled token, row by row."""
    counts = right != _IGNORED
    tags = [[[names[i] for i in row[kept]] for row, kept in zip(part, counts, strict=True)] for part in (found, right)]
    return tags[0], tags[1]


def _require_aligned(part: Any, column: str, label: str, split: str) -> None:
    for i, (words, tags) in enumerate(zip(part[column], part[label], strict=True)):
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise DataError(
                f"row {i} of the {split} split: columns {column!r} and {label!r} must hold lists of the same length, "
                f"a word and its label each"
            )
