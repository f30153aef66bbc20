"""What a task needs besides a model: rows of tensors, a collator, a processor and one way to measure quality.

Level: outside. A new task is one decorated function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_compress.errors import DataError, did_you_mean
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import ImageRows, Splits, load_splits
from hf_compress.recipes.texts import load_texts, packed_rows, tokenize
from hf_compress.registry import Registry

_EVALUATION_BATCH = 64


def accuracy(prediction: Any) -> dict[str, float]:
    """`compute_metrics` of the Trainer."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@dataclass
class Task:
    """Everything of a task that is the same for all models of a run.

    Args:
        auto_class: name of the AutoModelFor... class.
        pipeline_tag: the Hub's name of the task.
        rows: train, validation and test as rows of tensors.
        labels: class names.
        collator: rows to a batch.
        processing_class: tokenizer or image processor, saved beside each model.
        source: dataset id, revision and split of the test rows.
        arguments: training arguments that suit the data.
        quality: metrics of a model on a split; None: the accuracy.
        trainer_metrics: `compute_metrics` of the Trainer; None: it reports the loss only.
    """

    auto_class: str
    pipeline_tag: str
    rows: Mapping[str, Any]
    labels: tuple[str, ...]
    collator: Callable[[Any], dict[str, torch.Tensor]]
    processing_class: Any
    source: Mapping[str, Any]
    arguments: Mapping[str, Any]
    quality: Callable[[nn.Module, str], dict[str, float]] | None = None
    trainer_metrics: Callable[[Any], dict[str, float]] | None = accuracy

    @property
    def dataset(self) -> dict[str, Any]:
        """What records say of the data behind the quality numbers."""
        return {**self.source, "samples": len(self.rows["test"])}

    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """Return the metrics of `model` on a split, by default its accuracy (0-1)."""
        if self.quality is not None:
            return self.quality(model, split)
        device = next(model.parameters()).device
        loader = torch.utils.data.DataLoader(self.rows[split], _EVALUATION_BATCH, collate_fn=self.collator)
        right = torch.zeros((), dtype=torch.long)
        model.eval()
        with torch.inference_mode():
            for batch in loader:
                labels = batch.pop("labels")
                logits = model(**{k: v.to(device) for k, v in batch.items()}).logits
                right += (logits.argmax(-1).cpu() == labels).sum()
        return {"accuracy": int(right) / len(self.rows[split])}


TASKS: Registry[Callable[[TaskConfig, str | None], Task]] = Registry("task")


def build_task(config: TaskConfig, processor_source: str | None) -> Task:
    """Load data and processor of a task.

    Args:
        config: the task of a recipe.
        processor_source: folder or Hub id to take the tokenizer or image processor from, if there is one.

    Raises:
        DataError: if the data are not as the task needs them.
    """
    return TASKS.get(config.type)(config, processor_source)


@TASKS.register("image-classification")
def image_classification(config: TaskConfig, processor_source: str | None) -> Task:
    """One class an image."""
    from transformers import AutoImageProcessor

    splits = load_splits(config)
    _require_columns(splits, (config.image_column,))
    if processor_source is None:
        processor = _plain_processor(splits, config)
    else:
        processor = AutoImageProcessor.from_pretrained(processor_source, trust_remote_code=False)
    columns = (config.image_column, config.label_column)
    rows = {name: ImageRows(part, processor, columns) for name, part in splits.rows.items()}
    return Task(
        auto_class="AutoModelForImageClassification",
        pipeline_tag="image-classification",
        rows=rows,
        labels=splits.labels,
        collator=_pass_batch,
        processing_class=processor,
        source=splits.source,
        arguments={"remove_unused_columns": False},
    )


@TASKS.register("text-classification")
def text_classification(config: TaskConfig, processor_source: str | None) -> Task:
    """One class a text or a pair of texts."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    if processor_source is None:
        raise DataError("text-classification needs a tokenizer: let the first stage start from a Hub id or a folder")
    splits = load_splits(config)
    columns = config.text_columns or ("text",)
    _require_columns(splits, columns)
    tokenizer = AutoTokenizer.from_pretrained(processor_source, trust_remote_code=False)

    def encode(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        encoded = tokenizer(*(batch[c] for c in columns), truncation=True, max_length=config.max_length)
        return {**encoded, "labels": batch[config.label_column]}

    rows = {
        name: part.map(encode, batched=True, remove_columns=part.column_names, desc=f"tokenize {name}").with_format(
            "torch"
        )
        for name, part in splits.rows.items()
    }
    return Task(
        auto_class="AutoModelForSequenceClassification",
        pipeline_tag="text-classification",
        rows=rows,
        labels=splits.labels,
        collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        source=splits.source,
        arguments={"train_sampling_strategy": "group_by_length"},
    )


@TASKS.register("causal-language-modeling")
def causal_language_modeling(config: TaskConfig, processor_source: str | None) -> Task:
    """The next token of text; texts are joined and cut into rows of `max_length` tokens."""
    from transformers import AutoTokenizer, default_data_collator

    from hf_compress.measurement.perplexity import perplexity

    if processor_source is None:
        raise DataError(
            "causal-language-modeling needs a tokenizer: let the first stage start from a Hub id or a folder"
        )
    tokenizer = AutoTokenizer.from_pretrained(processor_source, trust_remote_code=False)
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


def _require_columns(splits: Splits, columns: tuple[str, ...]) -> None:
    names = splits.rows["train"].column_names
    for column in columns:
        if column not in names:
            raise DataError(
                f"the dataset has no column {column!r}{did_you_mean(column, names)}; it has {', '.join(names)}. "
                "Name the right one in the task (text_columns, image_column)"
            )


def _plain_processor(splits: Splits, config: TaskConfig) -> Any:
    """Scale to [-1, 1] at the size that the images have."""
    from transformers import ViTImageProcessor

    width, height = splits.rows["train"][0][config.image_column].size
    size = {"height": height, "width": width}
    return ViTImageProcessor(size=size, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _pass_batch(batch: Any) -> dict[str, torch.Tensor]:
    """Take a batch as `ImageRows` cut it, or stack single rows."""
    if isinstance(batch, Mapping):
        return dict(batch)
    return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
