"""What a recipe file may say.

Level: base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.config import CompressionConfig
from hf_compress.options import Options
from hf_compress.plain import shown
from hf_compress.pruning.oneshot.config import OneShotConfig
from hf_compress.quantization.config import QuantizationConfig

# Names of what a run writes beside its stages.
RESERVED = ("records", "state", "work", "report")


@dataclass(frozen=True)
class TaskConfig(Options):
    """The data and how it becomes model inputs."""

    type: str = field(
        metadata={
            "help": "text-classification, token-classification, question-answering, causal-language-modeling, "
            "masked-language-modeling, sequence-to-sequence, sentence-embeddings, image-classification or "
            "audio-classification"
        }
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a dataset, or 'digits' (scikit-learn's, no download)"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration name of the Hub dataset"})
    revision: str | None = field(default=None, metadata={"help": "revision of the Hub dataset"})
    files: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "parquet, csv, json or txt files by split, instead of a dataset; 'unlabeled' is text from which "
            "text-classification distils beside the training split"
        },
    )
    splits: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "names of the splits to use as train, validation, test and unlabeled; validation is cut from train"
        },
    )
    text_columns: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "columns of text: one, or two for pairs; question and context; source and target; the words of a "
            "text; the messages of a chat"
        },
    )
    image_column: str = field(default="image", metadata={"help": "column that holds the images"})
    audio_column: str = field(default="audio", metadata={"help": "column that holds sound files, or samples"})
    rate_column: str = field(
        default="sampling_rate", metadata={"help": "column with the samples a second, where no sound file says so"}
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "column that holds the class, the classes or the number to predict; the tags of words; the "
            "answers of questions; default: label, ner_tags, answers"
        },
    )
    fold: tuple[int, ...] = field(
        default=(),
        metadata={
            "help": "cross-validation: which part of the training data is validation and test, from 0, and of how "
            "many; the test split itself is left out"
        },
    )
    max_length: int = field(
        default=128, metadata={"help": "longest text, in tokens; of language models the length of their rows"}
    )
    max_target_length: int = field(
        default=64, metadata={"help": "sequence-to-sequence: longest target, and longest text that is written"}
    )
    prefix: str = field(default="", metadata={"help": "sequence-to-sequence: put before each source"})
    doc_stride: int = field(
        default=64, metadata={"help": "question-answering: tokens that two windows of a long context share"}
    )
    mlm_probability: float = field(
        default=0.15, metadata={"help": "masked-language-modeling: fraction of the tokens to predict, 0-1"}
    )
    max_seconds: float = field(default=10.0, metadata={"help": "audio-classification: longest sound, in seconds"})
    embedding_model: str | None = field(
        default=None, metadata={"help": "sentence-embeddings: Hub id or folder of the model to learn from"}
    )
    max_samples: int | None = field(default=None, metadata={"help": "use at most so many samples of each split"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if (self.dataset is None) == (not self.files):
            yield "give either dataset or files"
        for name in ("files", "splits"):
            unknown = set(getattr(self, name)) - {"train", "validation", "test", "unlabeled"}
            if unknown:
                yield f"{name} has unknown splits {sorted(unknown)}; there are train, validation, test and unlabeled"
        if self.fold and not (len(self.fold) == 2 and 0 <= self.fold[0] < self.fold[1] and self.fold[1] > 1):
            yield f"fold must be two numbers, which part from 0 and of how many (2 or more), found {list(self.fold)}"
        for name in ("max_length", "max_target_length"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, found {getattr(self, name)}"
        if not 0 <= self.doc_stride:
            yield f"doc_stride must be at least 0, found {self.doc_stride}"
        if not 0 < self.mlm_probability < 1:
            yield f"mlm_probability must lie between 0 and 1, found {self.mlm_probability}"
        if not self.max_seconds > 0:
            yield f"max_seconds must be above 0, found {self.max_seconds}"
        if self.max_samples is not None and self.max_samples < 1:
            yield f"max_samples must be at least 1, found {self.max_samples}"


@dataclass(frozen=True)
class ExportConfig(Options):
    """What another runtime gets."""

    format: str = field(default="openvino", metadata={"help": "onnx, openvino or executorch"})
    quantization: str | None = field(
        default=None, metadata={"help": "dynamic or static: 8-bit weights, activations in 8 bit too; none: as it is"}
    )


@dataclass(frozen=True)
class StageConfig(Options):
    """One step of a recipe; which options it takes depends on its kind."""

    name: str = field(metadata={"help": "name of the stage and of the folder that it writes"})
    kind: str = field(metadata={"help": "train, shrink, oneshot, quantize or export"})
    source: str | None = field(
        default=None, metadata={"help": "what to start from: an earlier stage, a folder or a Hub id"}
    )
    config: Mapping[str, Any] | None = field(
        default=None, metadata={"help": "train: start from a new model with this transformers config instead"}
    )
    teacher: str | None = field(default=None, metadata={"help": "train: an earlier stage, a folder or a Hub id"})
    compression: CompressionConfig | None = field(default=None, metadata={"help": "train: distillation and pruning"})
    arguments: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "train: TrainingArguments"})
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = field(
        default=None,
        metadata={
            "help": "shrink: number of layers to keep, evenly spread, or their indices; of a model with two stacks a "
            "mapping from config field to these"
        },
    )
    ffn: int | float | None = field(
        default=None, metadata={"help": "shrink: FFN width to keep, or the fraction (below 1)"}
    )
    heads: int | float | None = field(
        default=None, metadata={"help": "shrink: key-value heads to keep, or the fraction (below 1)"}
    )
    hidden: int | float | None = field(
        default=None,
        metadata={"help": "shrink: hidden width to keep, or the fraction (below 1); the strongest channels"},
    )
    filters: float | None = field(
        default=None, metadata={"help": "shrink: fraction of the channels of each stage to keep (below 1)"}
    )
    oneshot: OneShotConfig | None = field(default=None, metadata={"help": "oneshot: what goes without training"})
    samples: int | None = field(
        default=None,
        metadata={"help": "oneshot, static export, calibrated schemes: training samples looked at; default 1024"},
    )
    quantization: QuantizationConfig | None = field(default=None, metadata={"help": "quantize: scheme and options"})
    export: ExportConfig | None = field(default=None, metadata={"help": "export: format and quantization"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", self.name) or self.name in RESERVED:
            yield (
                f"name must be lower-case letters, digits, - and _ (at most 100) and none of {', '.join(RESERVED)}, "
                f"found {shown(self.name)}"
            )
        if (self.source is None) == (self.config is None):
            yield f"stage {self.name!r}: give either source or config"

    def given(self) -> set[str]:
        """Return the options that were set to something else than their default."""
        blank = StageConfig(name=self.name, kind=self.kind, source="-").to_dict()
        return {key for key, value in self.to_dict().items() if value != blank[key]} - {"source"}


@dataclass(frozen=True)
class MeasureConfig(Options):
    """Which models are compared, on what."""

    models: tuple[str, ...] = field(default=(), metadata={"help": "stages to measure; empty: all"})
    baseline: str | None = field(default=None, metadata={"help": "stage to compare with; none: the first"})
    result: str | None = field(default=None, metadata={"help": "stage that the card is about; none: the last"})
    batch_sizes: tuple[int, ...] = field(default=(1, 32), metadata={"help": "batch sizes of latency and throughput"})
    length: int | None = field(default=None, metadata={"help": "tokens per text when timing"})


@dataclass(frozen=True)
class CardConfig(Options):
    """What a card says that no measurement can know."""

    base_model: str | None = field(default=None, metadata={"help": "Hub id of what the first stage started from"})
    license: str | None = field(default=None, metadata={"help": "licence id of the Hub's list, e.g. apache-2.0"})
    language: tuple[str, ...] = field(default=(), metadata={"help": "language codes, e.g. en"})
    datasets: tuple[str, ...] = field(default=(), metadata={"help": "Hub ids of the training data"})
    tags: tuple[str, ...] = field(default=(), metadata={"help": "further tags"})
    limits: tuple[str, ...] = field(default=(), metadata={"help": "sentences on what the model is not for"})


@dataclass(frozen=True)
class RecipeConfig(Options):
    """A whole job: task, stages, measurements, card, push."""

    name: str = field(metadata={"help": "name of the run; its folder is runs/NAME"})
    task: TaskConfig = field(metadata={"help": "data and metric"})
    stages: tuple[StageConfig, ...] = field(metadata={"help": "what is done, in order"})
    description: str = field(default="", metadata={"help": "one sentence on what the recipe does"})
    seed: int = field(default=0, metadata={"help": "seed of every stage"})
    measure: MeasureConfig = field(default_factory=MeasureConfig, metadata={"help": "what is compared"})
    card: CardConfig = field(default_factory=CardConfig, metadata={"help": "what the card says besides"})
    push_to: str | None = field(default=None, metadata={"help": "repo id to push the result to; none: do not push"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each reference that leads nowhere."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            yield f"name must be at most 100 letters, digits, '.', '-' and '_', found {shown(self.name)}"
        if not self.stages:
            yield "stages is empty: nothing to do"
        names = [s.name for s in self.stages]
        yield from (f"stage name {n!r} is used twice" for n in sorted({n for n in names if names.count(n) > 1}))
        asked = [*self.measure.models, self.measure.baseline, self.measure.result]
        unknown = sorted({n for n in asked if n is not None and n not in names})
        if unknown:
            yield f"measure names stages that do not exist: {', '.join(unknown)}; there are: {', '.join(names)}"
        compared = {n for n in (self.measure.baseline, self.measure.result) if n is not None}
        if self.measure.models and not compared <= set(self.measure.models):
            left_out = ", ".join(sorted(compared - set(self.measure.models)))
            yield f"measure.models leaves out {left_out}, which is its baseline or result"
        distils = any(s.compression is not None and s.compression.distillation is not None for s in self.stages)
        if "unlabeled" in {*self.task.files, *self.task.splits} and not distils:
            yield "task names unlabeled rows, and no stage has a compression.distillation that could learn from them"
