"""Texts from texts: summaries, translations.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_rows
from hf_compress.recipes.metrics import written_metrics
from hf_compress.recipes.task import TASKS, Task, load_tokenizer
from hf_compress.training.trainer import Seq2SeqCompressionTrainer

_BATCH = 32


@TASKS.register("sequence-to-sequence")
def sequence_to_sequence(config: TaskConfig, processor_source: str | None) -> Task:
    """A target text for a source text, written greedily and compared: exact match, chrF, ROUGE-L."""
    from transformers import DataCollatorForSeq2Seq

    columns = config.text_columns or ("source", "target")
    if len(columns) != 2:
        raise DataError(f"sequence-to-sequence needs two text_columns, source and target, found {columns}")
    splits = load_rows(config, columns)
    tokenizer = load_tokenizer(config.type, processor_source)

    def encode(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        sources = [config.prefix + text for text in batch[columns[0]]]
        encoded = tokenizer(sources, truncation=True, max_length=config.max_length)
        targets = tokenizer(text_target=batch[columns[1]], truncation=True, max_length=config.max_target_length)
        return {**encoded, "labels": targets["input_ids"]}

    rows = {
        name: part.map(encode, batched=True, remove_columns=part.column_names, desc=f"tokenize {name}")
        for name, part in splits.rows.items()
    }
    collator = DataCollatorForSeq2Seq(tokenizer)

    def texts(ids: np.ndarray) -> list[str]:
        return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        return written_metrics(write(model, rows[split], collator, texts, config), splits.rows[split][columns[1]][:])

    return Task(
        auto_class="AutoModelForSeq2SeqLM",
        # Whether it translates or summarizes only the user knows.
        pipeline_tag=None,
        rows=rows,
        labels=(),
        collator=collator,
        processing_class=tokenizer,
        source=splits.source,
        arguments={"predict_with_generate": True, "generation_max_length": config.max_target_length},
        quality=quality,
        trainer_metrics=lambda p: written_metrics(texts(p.predictions), texts(p.label_ids)),
        trainer_class=Seq2SeqCompressionTrainer,
        arguments_class=Seq2SeqTrainingArguments,
    )


def write(model: Any, rows: Any, collator: Any, texts: Any, config: TaskConfig) -> list[str]:
    """Return what `model` writes for each row, greedily."""
    device = next(model.parameters()).device
    model.eval()
    found: list[str] = []
    for batch in torch.utils.data.DataLoader(rows, _BATCH, collate_fn=collator):
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": config.max_target_length, "num_beams": 1, "do_sample": False}
        with torch.inference_mode():
            found += texts(model.generate(**inputs, **options).cpu().numpy())
    return found
