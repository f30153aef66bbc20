"""Language models: the next token of text or of chats, and masked tokens.

Level: outside.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import Splits, load_raw, load_rows
from hf_compress.recipes.labels import is_list
from hf_compress.recipes.task import TASKS, Task, forward_batches, load_tokenizer, token_losses
from hf_compress.recipes.texts import load_texts, packed_rows, tokenize

logger = logging.getLogger(__name__)

# Evaluation rows are masked once, by this seed, so that models are compared on the same gaps.
_MASK_SEED = 0


@TASKS.register("causal-language-modeling")
def causal_language_modeling(config: TaskConfig, processor_source: str | None) -> Task:
    """The next token: of texts, joined and cut into rows of `max_length` tokens, or of chats (lists of messages)."""
    from transformers import default_data_collator

    from hf_compress.measurement.perplexity import perplexity

    tokenizer = load_tokenizer(config.type, processor_source)
    if _is_chat(config):
        return _chats(config, tokenizer)
    splits = load_texts(config)
    tokens = {name: tokenize(part, tokenizer) for name, part in splits.rows.items()}
    rows = {name: packed_rows(ids, config.max_length, name) for name, ids in tokens.items()}

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        found = perplexity(model, tokens[split], length=config.max_length)
        return {"perplexity": found["perplexity"], "loss": found["loss"]}

    return Task(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        rows=rows,
        labels=(),
        collator=default_data_collator,
        processing_class=tokenizer,
        source={**splits.source, "context": config.max_length, "tokens": len(tokens["test"])},
        arguments={"prediction_loss_only": True},
        quality=quality,
        trainer_metrics=None,
    )


def _is_chat(config: TaskConfig) -> bool:
    """Say whether the column of text holds lists, which are the messages of a chat."""
    if not config.text_columns:
        return False
    loaded = load_raw(config)
    feature = next(iter(loaded.values())).features.get(config.text_columns[0])
    return is_list(feature)


def _chats(config: TaskConfig, tokenizer: Any) -> Task:
    """Chats as the tokenizer's template writes them; the loss is on what the assistant says."""
    from transformers import DataCollatorForSeq2Seq

    if tokenizer.chat_template is None:
        raise DataError("chats need a tokenizer with a chat template; this one has none")
    knows_turns = re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)) is not None
    if not knows_turns:
        logger.warning(
            "the chat template does not mark the assistant's turns ({%% generation %%}), so the loss is on all tokens"
        )
    splits = load_rows(config, config.text_columns)
    rows = {
        name: chat_rows(part[config.text_columns[0]], tokenizer, config.max_length, knows_turns, name)
        for name, part in splits.rows.items()
    }
    collator = DataCollatorForSeq2Seq(tokenizer)

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        total, count = 0.0, 0
        for outputs, batch in forward_batches(model, rows[split], collator):
            loss, _, n = token_losses(outputs.logits[:, :-1].cpu(), batch["labels"][:, 1:])
            total, count = total + loss, count + n
        return {"perplexity": math.exp(total / count), "loss": total / count}

    return Task(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        rows=rows,
        labels=(),
        collator=collator,
        processing_class=tokenizer,
        source={**splits.source, "loss": "assistant's turns" if knows_turns else "all tokens"},
        arguments={"prediction_loss_only": True, "train_sampling_strategy": "group_by_length"},
        quality=quality,
        trainer_metrics=None,
    )


def chat_rows(chats: Any, tokenizer: Any, length: int, knows_turns: bool, split: str) -> Any:
    """Return chats as tokens, with labels on the assistant's, or on all if the template does not know them.

    Args:
        chats: lists of messages, each with role and content.
        tokenizer: with a chat template.
        length: most tokens of a chat; what is beyond is cut off.
        knows_turns: whether the template marks what the assistant says.
        split: name for messages.

    Raises:
        DataError: if no chat has anything to learn within `length` tokens.
    """
    from datasets import Dataset

    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for messages in chats:
        encoded = tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=knows_turns,
            truncation=True,
            max_length=length,
        )
        ids = encoded["input_ids"]
        counts = encoded["assistant_masks"] if knows_turns else [1] * len(ids)
        # The first token is never predicted.
        if not any(counts[1:]):
            continue
        rows["input_ids"].append(ids)
        rows["attention_mask"].append([1] * len(ids))
        rows["labels"].append([i if c else -100 for i, c in zip(ids, counts, strict=True)])
    if not rows["input_ids"]:
        raise DataError(f"no chat of the {split} split has a turn of the assistant within {length} tokens")
    return Dataset.from_dict(rows)


@TASKS.register("masked-language-modeling")
def masked_language_modeling(config: TaskConfig, processor_source: str | None) -> Task:
    """Tokens behind a mask; texts are joined and cut into rows of `max_length` tokens."""
    from transformers import DataCollatorForLanguageModeling

    tokenizer = load_tokenizer(config.type, processor_source)
    if tokenizer.mask_token is None:
        raise DataError("masked-language-modeling needs a tokenizer with a mask token; this one has none")
    splits = load_texts(config)
    rows = _unmasked_rows(splits, tokenizer, config.max_length)
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=config.mlm_probability)
    for name in ("validation", "test"):
        rows[name] = masked_rows(rows[name], tokenizer, config.mlm_probability)

    def collate(batch: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if "labels" in batch[0]:  # masked before
            return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}
        return dict(masking(batch))

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        total, right, count = 0.0, 0, 0
        for outputs, batch in forward_batches(model, rows[split], collate):
            loss, hits, n = token_losses(outputs.logits.cpu(), batch["labels"])
            total, right, count = total + loss, right + hits, count + n
        return {"accuracy": right / count, "loss": total / count, "perplexity": math.exp(total / count)}

    return Task(
        auto_class="AutoModelForMaskedLM",
        pipeline_tag="fill-mask",
        rows=rows,
        labels=(),
        collator=collate,
        processing_class=tokenizer,
        source={**splits.source, "context": config.max_length, "masked": config.mlm_probability},
        arguments={"prediction_loss_only": True},
        quality=quality,
        trainer_metrics=None,
    )


def _unmasked_rows(splits: Splits, tokenizer: Any, length: int) -> dict[str, Any]:
    tokens = {name: tokenize(part, tokenizer, special_tokens=True) for name, part in splits.rows.items()}
    return {name: packed_rows(ids, length, name).remove_columns("labels") for name, ids in tokens.items()}


def masked_rows(rows: Any, tokenizer: Any, probability: float) -> Any:
    """Return rows with gaps that are the same each time, and labels there (-100 elsewhere).

    Raises:
        DataError: if nothing is masked.
    """
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling

    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=_MASK_SEED)
    masked = masking([{"input_ids": ids} for ids in rows["input_ids"]])
    if not bool((masked["labels"] != -100).any()):
        raise DataError("nothing is masked in so few tokens; give more text or a larger mlm_probability")
    return Dataset.from_dict({key: list(masked[key].numpy()) for key in ("input_ids", "labels")}).with_format("torch")
