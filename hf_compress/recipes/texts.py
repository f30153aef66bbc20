"""Text of a recipe for language models: three splits, tokens, rows of one length.

Level: outside.
"""

from __future__ import annotations

from typing import Any

import torch

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import (
    SPLITS,
    Splits,
    file_paths,
    load_raw,
    pick_split,
    require_columns,
    require_texts,
    source_of,
)
from hf_compress.recipes.folds import fold_of_texts

_CHUNK = 1000


def load_texts(task: TaskConfig) -> Splits:
    """Load the texts of `task`; where there is no test split, the last tenth of the text is it, and so for validation.

    Raises:
        DataError: if a split or column is missing or empty.
    """
    loaded = load_raw(task)
    column = (task.text_columns or ("text",))[0]
    rows: dict[str, Any] = {}
    for name in SPLITS:
        found = pick_split(loaded, task, name, needed=name == "train")
        if found is None:
            continue
        require_columns(found, (column,), name)
        require_texts(found, (column,), name)
        # A file of lines lost its line ends in loading.
        is_lines = any(path.endswith(".txt") for path in file_paths(task.files))
        rows[name] = [f"{text}\n" if is_lines else text for text in found[column]]
    for name in ("test", "validation"):
        if name not in rows:
            cut = len(rows["train"]) - max(1, len(rows["train"]) // 10)
            rows["train"], rows[name] = rows["train"][:cut], rows["train"][cut:]
    if task.fold:
        rows = fold_of_texts(rows, (task.fold[0], task.fold[1]))
    if task.max_samples is not None:
        rows = {name: texts[: task.max_samples] for name, texts in rows.items()}
    return Splits(rows, (), source_of(task))


def tokenize(texts: list[str], tokenizer: Any, special_tokens: bool = False) -> torch.Tensor:
    """Return the tokens of all texts, one after the other, each between special tokens if asked."""
    found: list[int] = []
    for first in range(0, len(texts), _CHUNK):
        for ids in tokenizer(texts[first : first + _CHUNK], add_special_tokens=special_tokens)["input_ids"]:
            found += ids
    return torch.tensor(found, dtype=torch.int64)


def packed_rows(tokens: torch.Tensor, length: int, name: str) -> Any:
    """Return rows of `length` tokens, whose labels are themselves; what is left over at the end is dropped.

    Raises:
        DataError: if there are not enough tokens for one row.
    """
    from datasets import Dataset

    if len(tokens) < length:
        raise DataError(
            f"the {name} split has {len(tokens)} tokens; expected at least {length}, one row of max_length"
        )
    rows = tokens[: len(tokens) // length * length].view(-1, length).numpy()
    return Dataset.from_dict({"input_ids": list(rows), "labels": list(rows)}).with_format("torch")
