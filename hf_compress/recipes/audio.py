"""Sounds: from files or from samples, at the rate that the model was made for.

Level: outside.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_compress.errors import DataError
from hf_compress.imports import require
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_splits, require_columns
from hf_compress.recipes.task import TASKS, Task


@TASKS.register("audio-classification")
def audio_classification(config: TaskConfig, processor_source: str | None) -> Task:
    """One class a sound."""
    from datasets import Audio
    from transformers import AutoFeatureExtractor

    column, label = config.audio_column, config.label_column or "label"
    splits = load_splits(config, (column,), label)
    is_file = isinstance(splits.rows["train"].features[column], Audio)
    if is_file:
        require("soundfile", "reading sound files")
    for name, part in splits.rows.items() if not is_file else ():
        require_columns(part, (config.rate_column,), name)
    if processor_source is None:
        raise DataError(
            f"{config.type} needs a feature extractor: let the first stage start from a Hub id or a folder"
        )
    extractor = AutoFeatureExtractor.from_pretrained(processor_source, trust_remote_code=False)
    rate = extractor.sampling_rate

    def encode(row: Mapping[str, Any]) -> Mapping[str, Any]:
        samples, own_rate = read_sound(row[column]) if is_file else (_floats(row[column]), row[config.rate_column])
        samples = resample(samples, own_rate, rate)[: int(config.max_seconds * rate)]
        features = extractor(samples, sampling_rate=rate)
        return {**{name: values[0] for name, values in features.items()}, "labels": row[label]}

    rows = {}
    for name, part in splits.rows.items():
        # Files are read here: the decoder of datasets needs FFmpeg on the machine.
        raw = part.cast_column(column, Audio(decode=False)) if is_file else part
        rows[name] = raw.map(encode, remove_columns=part.column_names, desc=f"read {name}")

    def collate(batch: list[Mapping[str, Any]]) -> dict[str, Any]:
        return dict(extractor.pad([dict(row) for row in batch], padding=True, return_tensors="pt"))

    return Task(
        auto_class="AutoModelForAudioClassification",
        pipeline_tag="audio-classification",
        rows=rows,
        labels=splits.labels,
        collator=collate,
        processing_class=extractor,
        source={**splits.source, "sampling_rate": rate},
        arguments={},
    )


def read_sound(stored: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Return the samples (-1 to 1, channels averaged) and samples a second of a sound file.

    Raises:
        DataError: if it is no sound file.
    """
    import soundfile

    place = io.BytesIO(stored["bytes"]) if stored.get("bytes") is not None else stored["path"]
    try:
        samples, rate = soundfile.read(place, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{stored.get('path') or 'a sound'} cannot be read: {error}") from error
    return samples.mean(1), rate


def _floats(samples: Any) -> np.ndarray:
    """Return samples as floats; whole numbers are taken for 16 bit."""
    found = np.asarray(samples)
    return (found / 32768 if np.issubdtype(found.dtype, np.integer) else found).astype(np.float32)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return a sound at another number of samples a second, without what is above its half.

    Raises:
        DataError: if there are no samples.
        MissingDependencyError: if scipy is not installed and the rates differ.
    """
    if len(samples) == 0:
        raise DataError("a sound has no samples; leave such rows out")
    if rate == wanted:
        return samples
    require("scipy", "resampling sounds")
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // shared, rate // shared).astype(np.float32)
