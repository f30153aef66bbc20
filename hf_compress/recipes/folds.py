"""Parts of the training data for cross-validation: one is tested on, the others are trained on.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_compress.errors import DataError
from hf_compress.imports import require

# The parts must be the same in every run that compares scores on them.
_SEED = 0


def fold_of_rows(splits: Mapping[str, Any], fold: tuple[int, int], label_column: str | None) -> dict[str, Any]:
    """Return one fold of the training data as train, validation and test; the test split given is left out.

    Validation and test are the same rows. Each part has as many rows of each class as the others, where there are
    classes and enough rows of each.

    Args:
        splits: train, perhaps validation, which is trained on too, and test.
        fold: which part, from 0, and of how many.
        label_column: that may hold classes.

    Raises:
        DataError: if there are fewer rows than parts.
    """
    require("sklearn", "cross-validation")
    from datasets import concatenate_datasets
    from sklearn.model_selection import KFold, StratifiedKFold

    which, parts = fold
    pool = concatenate_datasets([splits[name] for name in ("train", "validation") if name in splits])
    _check(len(pool), parts)
    classes = _classes(pool, label_column, parts)
    kind = KFold if classes is None else StratifiedKFold
    pairs = kind(parts, shuffle=True, random_state=_SEED).split(range(len(pool)), classes)
    kept, left_out = list(pairs)[which]
    held_out = pool.select(left_out)
    return {"train": pool.select(kept), "validation": held_out, "test": held_out}


def fold_of_texts(splits: Mapping[str, list[str]], fold: tuple[int, int]) -> dict[str, list[str]]:
    """Return one fold of texts that follow each other: parts are whole runs of them, as in `fold_of_rows`.

    Raises:
        DataError: if there are fewer texts than parts.
    """
    which, parts = fold
    pool = [text for name in ("train", "validation") for text in splits.get(name, ())]
    _check(len(pool), parts)
    first, last = which * len(pool) // parts, (which + 1) * len(pool) // parts
    return {"train": pool[:first] + pool[last:], "validation": pool[first:last], "test": pool[first:last]}


def _check(rows: int, parts: int) -> None:
    if rows < parts:
        raise DataError(f"expected at least {parts} training rows for {parts} folds, found {rows}")


def _classes(pool: Any, column: str | None, parts: int) -> list[int] | None:
    """Return the class of each row, None where there are none or too few rows of one."""
    if column is None or column not in pool.column_names:
        return None
    values = pool[column][:]
    if not all(isinstance(v, int) for v in values) or min(map(values.count, set(values))) < parts:
        return None
    return values
