"""What a task needs besides a model: rows of tensors, a collator, a processor and one way to measure quality.

Level: outside.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import EvalPrediction, TrainingArguments

from hf_compress.architecture.heads import head_modules
from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.metrics import accuracy
from hf_compress.registry import Registry
from hf_compress.training.trainer import CompressionTrainer

logger = logging.getLogger(__name__)

_EVALUATION_BATCH = 64


@dataclass
class Task:
    """Everything of a task that is the same for all models of a run.

    Args:
        auto_class: name of the AutoModelFor... class.
        pipeline_tag: the Hub's name of the task; None: it has none.
        rows: train, validation and test as rows of tensors.
        labels: class names.
        collator: rows to a batch.
        processing_class: tokenizer, image processor or feature extractor, saved beside each model.
        source: dataset id, revision and split of the test rows.
        arguments: training arguments that suit the data.
        quality: metrics of a model on a split; None: `trainer_metrics` of its predictions.
        trainer_metrics: `compute_metrics` of the Trainer, for the validation split; None: it reports the loss only.
        problem_type: "regression" or "multi_label_classification" of heads that do either; None: one of several.
        trainer_class: Trainer that knows the loss and the evaluation of the task.
        arguments_class: that this Trainer takes.
        unlabeled: rows of tensors without labels, to distil from beside the training rows; None: there are none.
    """

    auto_class: str
    pipeline_tag: str | None
    rows: Mapping[str, Any]
    labels: tuple[str, ...]
    collator: Callable[[Any], dict[str, torch.Tensor]]
    processing_class: Any
    source: Mapping[str, Any]
    arguments: Mapping[str, Any]
    quality: Callable[[nn.Module, str], dict[str, float]] | None = None
    trainer_metrics: Callable[[Any], dict[str, float]] | None = accuracy
    problem_type: str | None = None
    trainer_class: type[Any] = CompressionTrainer
    arguments_class: type[TrainingArguments] = TrainingArguments
    unlabeled: Any = None

    @property
    def dataset(self) -> dict[str, Any]:
        """What records say of the data behind the quality numbers."""
        return {**self.source, "samples": len(self.rows["test"])}

    @property
    def head(self) -> dict[str, Any]:
        """What the config of a model says of its head."""
        if self.problem_type == "regression":
            return {"problem_type": self.problem_type, "num_labels": 1}
        names = {"id2label": dict(enumerate(self.labels)), "label2id": {name: i for i, name in enumerate(self.labels)}}
        kind = {"problem_type": self.problem_type} if self.problem_type is not None else {}
        return {**(names if self.labels else {}), **kind}

    def for_trainer(self) -> dict[str, Any]:
        """Return what a Trainer is given besides model and arguments."""
        return {
            "data_collator": self.collator,
            "train_dataset": self.rows["train"],
            "eval_dataset": self.rows.get("validation"),
            "processing_class": self.processing_class,
            "compute_metrics": self.trainer_metrics,
        }

    def suited(self, arguments: TrainingArguments) -> TrainingArguments:
        """Return training arguments with those that suit the data, where the user has left the default."""
        found = copy.copy(arguments)
        defaults = {f.name: f.default for f in dataclasses.fields(arguments)}
        for name, value in self.arguments.items():
            if getattr(arguments, name) == defaults[name]:
                setattr(found, name, value)
        return found

    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """Return the metrics of `model` on a split."""
        if self.quality is not None:
            return self.quality(model, split)
        batches = forward_batches(model, self.rows[split], self.collator)
        found, labels = zip(*((o.logits.float().cpu().numpy(), b["labels"].numpy()) for o, b in batches), strict=True)
        order = label_order(model, self.labels)
        logits = np.concatenate(found) if order is None else np.concatenate(found)[..., order]
        measure = self.trainer_metrics or accuracy
        return measure(EvalPrediction(logits, np.concatenate(labels)))


def label_order(model: nn.Module, labels: Sequence[str]) -> list[int] | None:
    """Return for each label of the data its number in the model, None if they are numbered alike.

    Where names differ but for case, or one side has none, numbers decide; different names are said.

    Args:
        model: whose config may name its labels.
        labels: of the data, in the order of their numbers.
    """
    theirs = _numbered(getattr(model, "config", None))
    if all(name.startswith("label_") for name in theirs) or all(name.isdecimal() for name in labels):
        return None
    if not _are_named_alike(theirs, labels):
        logger.warning(
            "the model's labels are %s, those of the data %s; they are compared by their numbers",
            ", ".join(list(theirs)[:6]), ", ".join(labels[:6]),
        )  # fmt: skip
        return None
    return _order(theirs, labels)


def _numbered(config: Any) -> dict[str, int]:
    named = getattr(config, "id2label", None) or {}
    return {str(name).lower(): int(number) for number, name in named.items()}


def _are_named_alike(theirs: Mapping[str, int], labels: Sequence[str]) -> bool:
    return len(theirs) == len(labels) and theirs.keys() == {name.lower() for name in labels}


def _order(theirs: Mapping[str, int], labels: Sequence[str]) -> list[int] | None:
    order = [theirs[name.lower()] for name in labels]
    return None if order == sorted(order) else order


def model_for(task: Task, source: str) -> Any:
    """Return the model `source` with a head for the labels of `task`.

    A head that knows the same labels under other numbers goes on with what it learnt of each.

    Args:
        task: whose `head` goes into the config.
        source: folder or Hub id.
    """
    auto = getattr(transformers, task.auto_class)
    model = auto.from_pretrained(source, trust_remote_code=False, ignore_mismatched_sizes=True, **task.head)
    theirs = _numbered(transformers.AutoConfig.from_pretrained(source, trust_remote_code=False))
    order = _order(theirs, task.labels) if _are_named_alike(theirs, task.labels) else None
    if order is not None:
        for name in head_modules(model):
            layer = model.get_submodule(name)
            if layer.out_features == len(order):
                for parameter in layer.parameters():
                    parameter.data = parameter.data[order].contiguous()
    return model


TASKS: Registry[Callable[[TaskConfig, str | None], Task]] = Registry("task")


def forward_batches(model: nn.Module, rows: Any, collator: Callable) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Yield the outputs of `model`, which gets no labels, and the batch, on the CPU, for all rows in order."""
    device = next(model.parameters()).device
    model.eval()
    for batch in torch.utils.data.DataLoader(rows, _EVALUATION_BATCH, collate_fn=collator):
        inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "start_positions", "end_positions")}
        with torch.inference_mode():
            outputs = model(**inputs)
        yield outputs, batch


def training_batches(task: Task, samples: int, size: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    """Return training samples of a task as batches, drawn by a seed; texts from short to long, to pad little."""
    rows = task.rows["train"]
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    drawn = sorted((rows[i] for i in chosen), key=lambda row: len(row["input_ids"]) if "input_ids" in row else 0)
    return [dict(task.collator(drawn[k : k + size])) for k in range(0, len(drawn), size)]


def load_tokenizer(task: str, source: str | None, **options: Any) -> Any:
    """Load the tokenizer of a task.

    Args:
        task: name, for the message.
        source: folder or Hub id.
        **options: of the tokenizer.

    Raises:
        DataError: if there is nowhere to take it from.
    """
    from transformers import AutoTokenizer

    if source is None:
        raise DataError(f"{task} needs a tokenizer: let the first stage start from a Hub id or a folder")
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int, int]:
    """Return the sum of cross-entropies, how many predictions are right and how many count; label -100 does not."""
    counts = labels != -100
    logits, labels = logits[counts].float(), labels[counts]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum") if len(labels) else torch.zeros(())
    return float(loss), int((logits.argmax(-1) == labels).sum()), len(labels)
