"""Classification of texts and images; the other tasks are registered by the modules imported here.

Level: outside. A new task is one decorated function here or beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from hf_compress.errors import DataError
from hf_compress.recipes import (  # noqa: F401  (each registers its tasks)
    audio,
    embeddings,
    language_tasks,
    question_answering,
    sequence_to_sequence,
    token_tasks,
)
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import ImageRows, Splits, load_rows, load_splits, load_unlabeled, require_texts
from hf_compress.recipes.labels import class_labels, is_list
from hf_compress.recipes.metrics import accuracy, multi_label_f1, regression
from hf_compress.recipes.task import TASKS, Task, load_tokenizer


def build_task(config: TaskConfig, processor_source: str | None) -> Task:
    """Load data and processor of a task.

    Args:
        config: the task of a recipe.
        processor_source: folder or Hub id to take the tokenizer or image processor from, if there is one.

    Raises:
        DataError: if the data are not as the task needs them.
    """
    task = TASKS.get(config.type)(config, processor_source)
    if task.unlabeled is None and "unlabeled" in {*config.files, *config.splits}:
        raise DataError(f"{config.type} takes no unlabeled rows; text-classification does")
    return task


@TASKS.register("image-classification")
def image_classification(config: TaskConfig, processor_source: str | None) -> Task:
    """One class an image."""
    from transformers import AutoImageProcessor

    label = config.label_column or "label"
    splits = load_splits(config, (config.image_column,), label)
    if processor_source is None:
        processor = _plain_processor(splits, config)
    else:
        processor = AutoImageProcessor.from_pretrained(processor_source, trust_remote_code=False)
    rows = {name: ImageRows(part, processor, (config.image_column, label)) for name, part in splits.rows.items()}
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
    """One class a text or pair of texts; any number of them if labels are lists; a number if they are fractions."""
    from transformers import DataCollatorWithPadding

    columns, label = config.text_columns or ("text",), config.label_column or "label"
    splits, problem = _texts_and_labels(config, columns, label)
    tokenizer = load_tokenizer(config.type, processor_source)
    if tokenizer.pad_token is None:
        raise DataError(
            f"{config.type} pads texts to one length, and the tokenizer of {processor_source} has no padding token; "
            "save the model with tokenizer.pad_token = tokenizer.eos_token and config.pad_token_id, and start there"
        )
    classes = len(splits.labels)

    def labels_of(values: list[Any]) -> list[Any]:
        if problem == "multi_label_classification":
            return [[float(i in chosen) for i in range(classes)] for chosen in map(set, values)]
        return [float(v) for v in values] if problem == "regression" else values

    def encode(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        encoded = tokenizer(*(batch[c] for c in columns), truncation=True, max_length=config.max_length)
        return {**encoded, "labels": labels_of(batch[label])} if label in batch else dict(encoded)

    def tensors(name: str, part: Any) -> Any:
        require_texts(part, columns, name)
        encoded = part.map(encode, batched=True, remove_columns=part.column_names, desc=f"tokenize {name}")
        return encoded.with_format("torch")

    unlabeled = load_unlabeled(config, columns)
    metrics = {"multi_label_classification": multi_label_f1, "regression": regression}
    return Task(
        auto_class="AutoModelForSequenceClassification",
        pipeline_tag="text-classification",
        rows={name: tensors(name, part) for name, part in splits.rows.items()},
        labels=splits.labels,
        collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        source=splits.source,
        arguments={"train_sampling_strategy": "group_by_length"},
        trainer_metrics=metrics.get(problem or "", accuracy),
        problem_type=problem,
        unlabeled=None if unlabeled is None else tensors("unlabeled", unlabeled),
    )


def _texts_and_labels(config: TaskConfig, columns: tuple[str, ...], label: str) -> tuple[Splits, str | None]:
    """Load texts with labels, and say what kind of problem these pose."""
    splits = load_rows(config, (*columns, label))
    feature = splits.rows["train"].features[label]
    if str(getattr(feature, "dtype", "")).startswith(("float", "double")):
        for name, part in splits.rows.items():
            _require_numbers(part[label], name, label)
        return splits, "regression"
    rows, names = class_labels(splits.rows, label)
    problem = "multi_label_classification" if is_list(feature) else None
    return Splits(rows, names, splits.source), problem


def _require_numbers(values: Any, split: str, column: str) -> None:
    wrong = [v for v in values if v is None or not math.isfinite(v)]
    if wrong:
        raise DataError(f"column {column!r} of the {split} split must hold finite numbers, found {wrong[0]}")


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
