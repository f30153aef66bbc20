"""Datasets of a recipe: loaded, split, checked, and turned into rows of tensors.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_compress.errors import DataError, did_you_mean
from hf_compress.imports import require
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.folds import fold_of_rows
from hf_compress.recipes.labels import class_labels

SPLITS = ("train", "validation", "test")
_UNLABELED = "unlabeled"
_LOADERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
# The split must not depend on the seed of a run, or runs with other seeds would be tested on training data.
_SPLIT_SEED = 0
# Up to here all images are decoded once and kept; beyond, each is decoded when it is asked for.
_PRELOAD_BYTES = 2**30


@dataclass(frozen=True)
class Splits:
    """Raw rows of the three splits and what they are.

    Args:
        rows: datasets by split.
        labels: class names in the order of the class ids.
        source: id, revision and split names, for records.
    """

    rows: Mapping[str, Any]
    labels: tuple[str, ...]
    source: Mapping[str, Any]


def load_splits(task: TaskConfig, columns: Sequence[str] = (), label_column: str = "label") -> Splits:
    """Load the dataset of `task` as train, validation and test, with class ids in the label column.

    Args:
        task: which dataset, and how much of it.
        columns: that must be there besides.
        label_column: of one class a row, or of a list of classes.

    Raises:
        DataError: if a split, file or column is missing or empty, or labels are no classes.
    """
    splits = load_rows(task, (*columns, label_column))
    rows, names = class_labels(splits.rows, label_column)
    return Splits(rows, names, splits.source)


def load_rows(task: TaskConfig, columns: Sequence[str]) -> Splits:
    """Load the dataset of `task` as train, validation and test, as it is.

    Args:
        task: which dataset, and how much of it.
        columns: that must be there.

    Raises:
        DataError: if a split, file or column is missing or empty.
    """
    loaded = _digits() if task.dataset == "digits" else load_raw(task)
    splits = _assign(loaded, task)
    if task.fold:
        splits = fold_of_rows(splits, (task.fold[0], task.fold[1]), task.label_column or "label")
    for name, rows in splits.items():
        if len(rows) == 0:
            raise DataError(f"the {name} split is empty; expected at least one row")
        require_columns(rows, columns, name)
        if task.max_samples is not None and len(rows) > task.max_samples:
            splits[name] = rows.shuffle(seed=_SPLIT_SEED).select(range(task.max_samples))
    return Splits(splits, (), source_of(task))


def pick_split(loaded: Any, task: TaskConfig, name: str, needed: bool = False) -> Any:
    """Return the split that `task` takes as `name`; None if there is none and it was neither named nor needed.

    Args:
        loaded: all splits of the dataset.
        task: which split is which.
        name: train, validation, test or unlabeled.
        needed: whether it must be there also if the task does not name it.

    Raises:
        DataError: with the splits that there are, and the near name.
    """
    chosen = task.splits.get(name, name)
    if chosen in loaded:
        return loaded[chosen]
    if needed or name in task.splits:
        raise DataError(
            f"the dataset has no split {chosen!r}{did_you_mean(chosen, loaded)}; it has {', '.join(loaded)}. "
            f"Name the one to use as {name} in task.splits.{name}"
        )
    return None


def require_columns(rows: Any, columns: Sequence[str], split: str) -> None:
    """Raise unless a split has all `columns`.

    Raises:
        DataError: with what it has, and the near name.
    """
    for column in columns:
        if column not in rows.column_names:
            raise DataError(
                f"the {split} split has no column {column!r}{did_you_mean(column, rows.column_names)}; it has "
                f"{', '.join(rows.column_names)}. Name the right one in the task (text_columns, label_column, "
                "image_column, audio_column)"
            )


def require_texts(rows: Any, columns: Sequence[str], split: str) -> None:
    """Make sure that columns hold text.

    Raises:
        DataError: with the first value that is none.
    """
    for column in columns:
        odd = [value for value in rows[column] if not isinstance(value, str)]
        if odd:
            raise DataError(
                f"column {column!r} of the {split} split must hold text, found {odd[0]!r} in {len(odd)} of its "
                f"{len(rows)} rows; leave these out"
            )


def source_of(task: TaskConfig) -> dict[str, Any]:
    """Return what records say of the data: id, revision and split."""
    split = task.splits.get("test", "test")
    if task.fold:
        split = f"fold {task.fold[0] + 1} of {task.fold[1]} of {task.splits.get('train', 'train')}"
    return {"id": task.dataset or "local files", "revision": task.revision, "split": split}


def _digits() -> Any:
    """scikit-learn's 1,797 handwritten digits as 8x8 RGB images, split 70/10/20 within each class."""
    require("sklearn", "the digits dataset")
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from PIL import Image as Pillow
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.clip(bunch.images * 255 / 16, 0, 255).astype("uint8")
    images = [Pillow.fromarray(p).convert("RGB") for p in pixels]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    rows = {"image": images, "label": bunch.target.tolist()}
    whole = Dataset.from_dict(rows, features=features)
    first = whole.train_test_split(test_size=0.2, seed=_SPLIT_SEED, stratify_by_column="label")
    second = first["train"].train_test_split(test_size=0.125, seed=_SPLIT_SEED, stratify_by_column="label")
    return DatasetDict(train=second["train"], validation=second["test"], test=first["test"])


def load_raw(task: TaskConfig) -> Any:
    """Return the splits of a dataset or of files, as they are, without files of unlabelled rows.

    Raises:
        DataError: if it is not found or cannot be loaded.
    """
    return _load(task, {name: files for name, files in task.files.items() if name != _UNLABELED})


def load_unlabeled(task: TaskConfig, columns: Sequence[str]) -> Any:
    """Return the rows without labels that `task` names, or None.

    Args:
        task: which dataset or file.
        columns: that must be there; others are left out.

    Raises:
        DataError: if the split, the file or a column is missing, or there is no row.
    """
    if _UNLABELED in task.files:
        rows = _load(task, {_UNLABELED: task.files[_UNLABELED]})[_UNLABELED]
    elif _UNLABELED in task.splits:
        rows = pick_split(load_raw(task), task, _UNLABELED)
    else:
        return None
    require_columns(rows, columns, _UNLABELED)
    if len(rows) == 0:
        raise DataError(f"the {_UNLABELED} split is empty; expected at least one row")
    if task.max_samples is not None and len(rows) > task.max_samples:
        rows = rows.shuffle(seed=_SPLIT_SEED).select(range(task.max_samples))
    return rows.select_columns(list(columns))


def _load(task: TaskConfig, files: Mapping[str, Any]) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        if task.dataset is None:
            return load_dataset(_file_kind(files), data_files=dict(files))
        return load_dataset(task.dataset, task.dataset_config, revision=task.revision)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(f"the dataset {task.dataset or dict(task.files)} was not found: {error}") from error
    # An unknown configuration name, files without any row, or with values of no common type.
    except (ValueError, DatasetGenerationError) as error:
        raise DataError(f"the dataset {task.dataset or dict(task.files)} cannot be loaded: {error}") from error


def file_paths(files: Mapping[str, Any]) -> list[str]:
    """Return all files of all splits; a split has one or a list."""
    return [str(p) for value in files.values() for p in (value if isinstance(value, (list, tuple)) else [value])]


def _file_kind(files: Mapping[str, Any]) -> str:
    paths = file_paths(files)
    kinds = {Path(p).suffix for p in paths}
    if len(kinds) != 1 or not kinds <= set(_LOADERS):
        found = ", ".join(sorted(kinds)) or "none"
        raise DataError(f"files must all end in one of {', '.join(_LOADERS)}, found {found}")
    lost = [p for p in paths if "*" not in p and "://" not in p and not Path(p).is_file()]
    if lost:
        raise DataError(f"there is no file {lost[0]}")
    return _LOADERS[kinds.pop()]


def _assign(loaded: Any, task: TaskConfig) -> dict[str, Any]:
    found = {name: pick_split(loaded, task, name, needed=name != "validation") for name in SPLITS}
    splits = {name: rows for name, rows in found.items() if rows is not None}
    chosen = {name: task.splits.get(name, name) for name in SPLITS}
    taken = chosen["validation"] == chosen["test"] or "validation" not in splits
    if taken and len(splits["train"]) > 1:
        # Choices are never made on the split that is reported.
        parts = splits["train"].train_test_split(test_size=0.1, seed=_SPLIT_SEED)
        splits.update(train=parts["train"], validation=parts["test"])
    return splits


class ImageRows(torch.utils.data.Dataset):
    """Images as normalised tensors; whole batches are cut from one tensor where they all fit into memory.

    Args:
        rows: a dataset with an image and a label column.
        processor: a transformers image processor.
        columns: names of the image and the label column.
    """

    def __init__(self, rows: Any, processor: Any, columns: tuple[str, str]) -> None:
        self.rows, self.processor = rows, processor
        self.image_column, self.label_column = columns
        self.labels = torch.tensor(rows[self.label_column][:], dtype=torch.long)
        self.pixels: torch.Tensor | None = None
        one = self._process([0])
        if one.numel() * one.element_size() * len(rows) <= _PRELOAD_BYTES:
            chunks = [range(i, min(i + 256, len(rows))) for i in range(0, len(rows), 256)]
            self.pixels = torch.cat([self._process(chunk) for chunk in chunks])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return a whole batch; the collator passes it on."""
        pixels = self.pixels[list(indices)] if self.pixels is not None else self._process(indices)
        return {"pixel_values": pixels, "labels": self.labels[list(indices)]}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def _process(self, indices: Sequence[int]) -> torch.Tensor:
        images = [image.convert("RGB") for image in self.rows.select(indices)[self.image_column]]
        return self.processor(images, return_tensors="pt")["pixel_values"]
