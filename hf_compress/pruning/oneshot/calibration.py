"""Calibration data: texts, a dataset or batches in, checked batches out.

Level: state.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from hf_compress.architecture.decoder import without_labels
from hf_compress.errors import DataError
from hf_compress.pruning.oneshot.taps import Batch


class Calibration(list[dict[str, torch.Tensor]]):
    """Batches, and how they were made.

    Args:
        batches: the batches.
        settings: seed, length and the like, as plain data.
    """

    def __init__(self, batches: Iterable[dict[str, torch.Tensor]], settings: Mapping[str, Any]) -> None:
        super().__init__(batches)
        self.settings = dict(settings)


def calibration_batches(
    data: Any,
    tokenizer: Any = None,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    batch_size: int = 8,
    column: str = "text",
) -> Calibration:
    """Return rows of tokens, drawn at random from texts that are joined and cut into pieces of one length.

    Args:
        data: a text, a list of texts, or a dataset with a column of texts or of `input_ids`.
        tokenizer: of the model; not needed for `input_ids`.
        samples: how many rows; fewer if the data has no more.
        length: tokens of each row.
        seed: of the draw.
        batch_size: rows of a batch.
        column: of the texts.

    Returns:
        A list of batches of `input_ids` and `attention_mask`, int64, (batch_size, length); its `settings` say how it
        was made, and are kept beside what is pruned on it.

    Raises:
        DataError: if there is no text, or not enough for one row.
    """
    if min(samples, length, batch_size) < 1:
        raise DataError(f"samples, length and batch_size must be at least 1, found {samples}, {length}, {batch_size}")
    ids = torch.tensor(list(_tokens(data, tokenizer, column)), dtype=torch.int64)
    rows = ids[: len(ids) // length * length].view(-1, length)
    if not len(rows):
        raise DataError(
            f"expected at least {length} tokens of calibration text, found {len(ids)}; give more, or a smaller length"
        )
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(samples, len(rows))))
    picked = rows[chosen]
    made = ({"input_ids": part, "attention_mask": torch.ones_like(part)} for part in picked.split(batch_size))
    return Calibration(made, {"length": length, "seed": seed, "tokens": picked.numel()})


def _tokens(data: Any, tokenizer: Any, column: str) -> Iterable[int]:
    if isinstance(data, str):
        data = [data]
    names = getattr(data, "column_names", None)
    if names is not None and column not in names:
        if "input_ids" not in names:
            raise DataError(
                f"expected a column {column!r} or 'input_ids' in the calibration data, found {', '.join(names)}"
            )
        for row in data:
            yield from row["input_ids"]
        return
    texts = [row[column] for row in data] if names is not None else list(data)
    texts = [text for text in texts if isinstance(text, str) and text.strip()]
    if not texts:
        raise DataError("the calibration data holds no text")
    if tokenizer is None:
        raise DataError("calibration texts need the tokenizer of the model")
    for first in range(0, len(texts), 1000):
        for row in tokenizer(texts[first : first + 1000], add_special_tokens=False)["input_ids"]:
            yield from row


def check_batches(batches: Any, model: Any) -> list[Batch]:
    """Return the batches as a list, if the model can take them.

    Args:
        batches: mappings of tensors.
        model: a transformers model; it may be on the meta device.

    Raises:
        DataError: if there are none, one is no mapping of tensors, or tokens lie outside of the vocabulary.
    """
    if not isinstance(batches, Sequence) or not batches:
        raise DataError("expected a list of at least one batch of calibration inputs, found none")
    try:
        size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # images and sounds
        size = None
    for batch in batches:
        if not isinstance(batch, Mapping) or not all(isinstance(v, torch.Tensor) for v in batch.values()) or not batch:
            raise DataError(f"expected batches that map names of inputs to tensors, found {type(batch).__name__}")
        for name, values in batch.items():
            if not values.numel():
                raise DataError(f"a batch of calibration inputs is empty: {name} has shape {tuple(values.shape)}")
            if name == "input_ids" and size is not None and not 0 <= int(values.min()) <= int(values.max()) < size:
                raise DataError(
                    f"expected tokens from 0 to {size - 1}, found {int(values.min())} to {int(values.max())}: the "
                    "calibration data was made with another tokenizer"
                )
    # Labels would only make a loss that nobody looks at.
    return [without_labels(model, batch) for batch in batches]
