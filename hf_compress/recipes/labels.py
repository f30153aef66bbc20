"""Labels of a dataset, whatever they are stored as, as class ids from 0.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from hf_compress.errors import DataError

# A head has a row for each id up to the largest, whether it occurs or not.
_MOST_CLASSES = 100_000


def class_labels(rows: Mapping[str, Any], column: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the splits with class ids in `column`, and the names of the classes in their order.

    Args:
        rows: datasets by split.
        column: of one class a row or a list of classes: `ClassLabel`, whole numbers from 0, or names. Names are
            numbered in alphabetical order.

    Raises:
        DataError: if something in it is no class, or a class id has no name.
    """
    from datasets import ClassLabel, List

    feature = rows["train"].features[column]
    inner = feature.feature if is_list(feature) else feature
    values = {split: _values(part, column) for split, part in rows.items()}
    names = getattr(inner, "names", None)
    if names is not None:
        _require_known(values, column, names)
        return dict(rows), tuple(names)
    found = set().union(*values.values())
    if found and all(isinstance(v, str) for v in found):
        names = sorted(found)
        coded = ClassLabel(names=names)
        wanted = List(coded) if is_list(feature) else coded
        return {split: part.cast_column(column, wanted) for split, part in rows.items()}, tuple(names)
    if not found or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in found):
        raise DataError(
            f"column {column!r} must hold class ids (whole numbers from 0; datasets' ClassLabel also names them) or "
            f"names of classes, found {sorted(found, key=str)[:5]}"
        )
    if max(found) >= _MOST_CLASSES:
        raise DataError(
            f"column {column!r} must hold class ids below {_MOST_CLASSES}, found {max(found)}; "
            "number the classes from 0"
        )
    return dict(rows), tuple(str(i) for i in range(max(found) + 1))


def is_list(feature: Any) -> bool:
    """Say whether a column holds lists."""
    return hasattr(feature, "feature")


def _values(part: Any, column: str) -> set[Any]:
    return set(chain.from_iterable(part[column])) if is_list(part.features[column]) else set(part.unique(column))


def _require_known(values: Mapping[str, set[Any]], column: str, names: list[str]) -> None:
    for split, found in values.items():
        wrong = [v for v in found if v is None or not 0 <= v < len(names)]
        if wrong:
            raise DataError(
                f"column {column!r} of the {split} split has the label {wrong[0]}; expected 0-{len(names) - 1} "
                f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}). Leave out rows without a label"
            )
