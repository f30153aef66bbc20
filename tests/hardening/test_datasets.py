"""Datasets that are not as a task needs them: one error of ours, or rows that can be trained on."""

import csv
import tempfile
from pathlib import Path

import language
import pytest
from hypothesis import strategies as st

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_splits
from hf_compress.recipes.texts import load_texts

from .inputs import bad_inputs, refused

LABELS = st.sampled_from(["0", "1", "2", "-1", "1.5", "nan", "", "inf", "cat", "true", str(2**31), str(10**30)])
ROWS = st.lists(st.tuples(st.sampled_from(["a b", "", "x" * 300, "\0", "\u20ac"]), LABELS), max_size=5)


def written(folder, rows, header=("text", "label")):
    path = Path(folder) / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return {"train": str(path), "test": str(path)}


@bad_inputs(ROWS, known=[[("a b", str(10**30))], [("a b", str(2**31))]], few=6, many=60)
def test_any_labels_are_class_ids_or_refused(rows):
    with tempfile.TemporaryDirectory() as folder:
        splits = refused(load_splits, TaskConfig(type="text-classification", files=written(folder, rows)))
        if not isinstance(splits, DataError):
            found = {v for part in splits.rows.values() for v in part["label"][:]}
            assert found <= set(range(len(splits.labels)))


@pytest.mark.parametrize(
    ("rows", "header"),
    [([], ("text", "label")), ([("a", "-1")], ("text", "label")),
     ([("a", "nan")], ("text", "label")), ([("a", "0")], ("x", "y")),
     ([("a", str(2**31))], ("text", "label")), ([("a", "0"), ("b", "")], ("text", "label"))],
)  # fmt: skip
def test_labels_that_are_no_class_ids_are_refused(rows, header, tmp_path):
    with pytest.raises(DataError):
        load_splits(TaskConfig(type="text-classification", files=written(tmp_path, rows, header)))


@pytest.mark.parametrize("text", ["", "\n", "one line"])
def test_hardly_any_text_is_refused_or_split(text, tmp_path):
    from hf_compress.recipes.tasks import build_task

    (tmp_path / "x.txt").write_text(text)
    source = language.save_model(tmp_path / "model")
    files = {"train": str(tmp_path / "x.txt")}
    with pytest.raises(DataError):
        build_task(TaskConfig(type="causal-language-modeling", files=files, max_length=64), str(source))


def test_a_column_of_numbers_is_no_text(tmp_path):
    files = written(tmp_path, [("1", "0"), ("2", "1")])
    with pytest.raises(DataError, match="text"):
        load_texts(TaskConfig(type="causal-language-modeling", files={"train": files["train"]}))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("kind", "load"), [("text-classification", load_splits), ("causal-language-modeling", load_texts)]
)
def test_a_split_that_was_named_and_is_not_there_is_refused_with_the_near_name(split, kind, load, tmp_path):
    files = written(tmp_path, [("one", "0"), ("two", "1")])
    with pytest.raises(DataError, match=f"no split 'tra1n' .did you mean 'train'.*task.splits.{split}"):
        load(TaskConfig(type=kind, files=files, splits={split: "tra1n"}))
