"""Texts with labels: what rows hold, how labels are read, what metrics say."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_tasks
import torch
from architectures import build
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    RobertaConfig,
    RobertaTokenizer,
)

from hf_compress.errors import ConfigError, DataError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.labels import class_labels
from hf_compress.recipes.metrics import multi_label_f1, regression, tag_metrics
from hf_compress.recipes.task import model_for
from hf_compress.recipes.tasks import TASKS, build_task
from hf_compress.recipes.token_tasks import first_token_labels


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_tasks.save_bert(tmp_path_factory.mktemp("bert"), AutoModelForSequenceClassification)


def task(folder, kind, rows, source, features=None, **options):
    file = tiny_tasks.write(folder / "rows.parquet", rows, features)
    return build_task(TaskConfig(type=kind, files={"train": file, "test": file}, **options), source)


NAMES = ClassLabel(names=["no", "yes"])


@pytest.mark.parametrize(
    ("values", "feature", "ids", "names"),
    [
        ([0, 1, 0], Value("int64"), [0, 1, 0], ("0", "1")),
        ([1, 0, 1], NAMES, [1, 0, 1], ("no", "yes")),
        (["b", "a", "b"], Value("string"), [1, 0, 1], ("a", "b")),
        ([[0], [], [2]], List(Value("int64")), [[0], [], [2]], ("0", "1", "2")),
        ([["b", "a"], [], ["c"]], List(Value("string")), [[1, 0], [], [2]], ("a", "b", "c")),
        ([[1], [], [0]], List(NAMES), [[1], [], [0]], ("no", "yes")),
    ],
)
def test_labels_become_class_ids_however_they_are_stored(values, feature, ids, names):
    rows = {"train": Dataset.from_dict({"label": values}, features=Features({"label": feature}))}
    found, found_names = class_labels(rows, "label")
    assert found["train"]["label"][:] == ids
    assert found_names == names


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([0, -1], NAMES, "has the label -1; expected 0-1"),
        ([0, None], NAMES, "has the label None"),
        ([0, -1], Value("int64"), "must hold class ids"),
        (["a", None], Value("string"), "must hold class ids"),
        ([True, False], Value("bool"), "must hold class ids"),
    ],
)
def test_what_is_no_class_is_refused(values, feature, message):
    rows = {"train": Dataset.from_dict({"label": values}, features=Features({"label": feature}))}
    with pytest.raises(DataError, match=message):
        class_labels(rows, "label")


def test_lists_of_labels_are_classes_that_do_not_exclude_each_other(tmp_path, classifier):
    rows = {"text": ["the film", "bad", "good", "it was"], "label": [["x", "z"], [], ["y"], ["z"]]}
    found = task(tmp_path, "text-classification", rows, classifier)
    assert found.problem_type == "multi_label_classification"
    assert found.rows["test"]["labels"][:].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    model = AutoModelForSequenceClassification.from_pretrained(classifier, ignore_mismatched_sizes=True, **found.head)
    batch = found.collator([found.rows["test"][i] for i in range(4)])
    logits = model(**batch)
    expected = np.mean(
        [
            -np.log(1 / (1 + np.exp(-z if y else z)))
            for z, y in zip(logits.logits.detach().numpy().ravel(), batch["labels"].numpy().ravel(), strict=True)
        ]
    )
    assert logits.loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(found.evaluate(model)) == {"f1_micro", "f1_macro"}


def test_fractions_are_numbers_to_predict(tmp_path, classifier):
    rows = {"text": ["the film", "bad", "good", "it was"], "label": [0.5, 1.0, -2.0, 0.0]}
    found = task(tmp_path, "text-classification", rows, classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, ignore_mismatched_sizes=True, **found.head)
    assert model.config.num_labels == 1
    batch = found.collator([found.rows["test"][i] for i in range(4)])
    outputs = model(**batch)
    mse = ((outputs.logits[:, 0] - batch["labels"]) ** 2).mean()
    assert outputs.loss.item() == pytest.approx(float(mse), rel=1e-5)
    assert found.evaluate(model)["mse"] == pytest.approx(float(mse), rel=1e-5)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["B", "C", "A"]])
def test_labels_are_compared_by_their_names(tmp_path, classifier, names):
    rows = {"text": ["the film", "bad", "good"], "label": ["a", "b", "c"]}
    found = task(tmp_path, "text-classification", rows, classifier)
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = AutoModelForSequenceClassification.from_pretrained(classifier, ignore_mismatched_sizes=True, **named)
    batch = found.collator([found.rows["test"][i] for i in range(3)])
    del batch["labels"]
    told = [names[i].lower() for i in model(**batch).logits.argmax(-1)]
    right = sum(one == other for one, other in zip(told, rows["label"], strict=True))
    assert found.evaluate(model)["accuracy"] == pytest.approx(right / 3)


def test_other_names_are_compared_by_number_and_said(tmp_path, classifier, caplog):
    rows = {"text": ["the film", "bad"], "label": ["no", "yes"]}
    found = task(tmp_path, "text-classification", rows, classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, id2label={0: "bad", 1: "good"})
    found.evaluate(model)
    assert "the model's labels are bad, good, those of the data no, yes" in caplog.text


def test_rows_without_text_and_tokenizers_without_padding_are_refused(tmp_path, classifier):
    rows = {"text": ["the film", None], "label": ["no", "yes"]}
    with pytest.raises(DataError, match="'text' of the .* split must hold text, found None in 1 of"):
        task(tmp_path, "text-classification", rows, classifier)
    tokenizer = tiny_tasks.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "unpadded")
    with pytest.raises(DataError, match="has no padding token"):
        task(tmp_path, "text-classification", {"text": ["a", "b"], "label": [0, 1]}, str(tmp_path / "unpadded"))


def test_pairs_are_read_as_the_tokenizer_joins_them(tmp_path, classifier):
    rows = {"one": ["the film", "bad"], "two": ["good", "it was"], "label": [0, 1]}
    found = task(tmp_path, "text-classification", rows, classifier, text_columns=("one", "two"))
    ids = {tuple(row["input_ids"].tolist()) for row in found.rows["test"]}
    words = tiny_tasks.tokenizer()
    assert ids == {tuple(words(a, b)["input_ids"]) for a, b in zip(rows["one"], rows["two"], strict=True)}


def test_unlabelled_pairs_become_rows_like_the_labelled_ones(tmp_path, classifier):
    rows = {"one": ["the film", "bad"], "two": ["good", "it was"], "label": [0, 1]}
    labelled = tiny_tasks.write(tmp_path / "rows.parquet", rows)
    more = tiny_tasks.write(tmp_path / "more.parquet", {"two": ["good"], "source": ["web"], "one": ["bad"]})
    files = {"train": labelled, "test": labelled, "unlabeled": more}
    found = build_task(TaskConfig("text-classification", files=files, text_columns=("one", "two")), classifier)
    expected = tiny_tasks.tokenizer()("bad", "good")["input_ids"]
    assert [row["input_ids"].tolist() for row in found.unlabeled] == [expected]
    assert "labels" not in found.unlabeled.column_names
    assert {len(part) for part in found.rows.values()} <= {1, 2}


def test_max_samples_counts_for_unlabelled_rows_too(tmp_path, classifier):
    file = tiny_tasks.write(tmp_path / "rows.parquet", {"text": ["good", "bad", "it was"] * 5, "label": [0, 1, 0] * 5})
    files = dict.fromkeys(("train", "test", "unlabeled"), file)
    found = build_task(TaskConfig("text-classification", files=files, max_samples=4), classifier)
    assert (len(found.unlabeled), len(found.rows["train"])) == (4, 4)


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("text-classification", {"txet": ["good"]}, "unlabeled split has no column 'text'"),
        ("token-classification", {"text": ["good"]}, "token-classification takes no unlabeled rows"),
    ],
)
def test_unlabelled_rows_that_cannot_be_used_are_refused(tmp_path, classifier, kind, rows, message):
    labelled = {"text": ["good", "bad"], "label": [0, 1], "words": [["good"], ["bad"]], "tags": [["O"], ["O"]]}
    file = tiny_tasks.write(tmp_path / "rows.parquet", labelled)
    files = {"train": file, "test": file, "unlabeled": tiny_tasks.write(tmp_path / "more.parquet", rows)}
    columns = {"text_columns": ("words",), "label_column": "tags"} if kind.startswith("token") else {}
    with pytest.raises(DataError, match=message):
        build_task(TaskConfig(kind, files=files, **columns), classifier)


def test_multi_label_f1_is_scikit_learns():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 5)), (generator.random((40, 5)) < 0.3).astype(float)
    labels[:, 4], logits[:, 4] = 0, -1  # a class that nobody sees
    found = multi_label_f1(SimpleNamespace(predictions=logits, label_ids=labels))
    for kind in ("micro", "macro"):
        expected = f1_score(labels, logits > 0, average=kind, zero_division=0)
        assert found[f"f1_{kind}"] == pytest.approx(expected)


def test_correlations_are_scipys_and_0_with_a_constant():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=30).round(1), generator.normal(size=30).round(1)
    found = regression(SimpleNamespace(predictions=one[:, None], label_ids=other))
    assert found["pearson"] == pytest.approx(stats.pearsonr(one, other)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(one, other)[0])
    constant = regression(SimpleNamespace(predictions=np.ones((30, 1)), label_ids=other))
    assert (constant["pearson"], constant["spearman"]) == (0, 0)


def test_the_first_token_of_a_word_has_its_label():
    words, tags = [None, 0, 0, 1, 2, 2, 2, None], [5, 6, 7]
    expected, seen = [], set()
    for word in words:
        expected.append(tags[word] if word is not None and word not in seen else -100)
        seen.add(word)
    assert first_token_labels(words, tags) == expected


def test_rows_of_words_are_labelled_at_their_first_tokens(tmp_path):
    pytest.importorskip("seqeval")
    source = tiny_tasks.save_bert(tmp_path / "bert", AutoModelForTokenClassification)
    rows = {"tokens": [["ann", "saw", "paris"], ["it"]], "ner_tags": [["B-P", "O", "B-L"], ["O"]]}
    found = task(tmp_path, "token-classification", rows, source)
    assert found.labels == ("B-L", "B-P", "O")
    # [CLS] a ##n ##n saw paris [SEP]
    assert found.rows["test"]["labels"][:] == [[-100, 1, -100, -100, 2, 0, -100], [-100, 2, -100]]
    model = AutoModelForTokenClassification.from_pretrained(source, ignore_mismatched_sizes=True, **found.head)
    assert set(found.evaluate(model)) == {"precision", "recall", "f1", "accuracy"}


def test_byte_level_tokenizers_see_a_space_before_each_word(tmp_path):
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    RobertaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[]).save_pretrained(tmp_path / "roberta")
    RobertaConfig().save_pretrained(tmp_path / "roberta")
    rows = {"tokens": [["ab", "c"]], "ner_tags": [["N", "V"]]}
    found = task(tmp_path, "token-classification", rows, str(tmp_path / "roberta"))
    tokens = found.processing_class.convert_ids_to_tokens(found.rows["test"][0]["input_ids"])
    assert tokens == ["<s>", "Ġ", "a", "b", "Ġ", "c", "</s>"]
    assert found.rows["test"][0]["labels"] == [-100, 0, -100, -100, 1, -100, -100]


def test_entities_count_as_a_whole():
    pytest.importorskip("seqeval")
    right = [["B-P", "I-P", "O", "B-L"], ["O", "B-P"]]
    found = [["B-P", "O", "O", "B-L"], ["B-L", "B-P"]]
    # 3 entities there, 4 predicted, 2 of them whole and of the right kind; 4 of 6 words.
    scores = tag_metrics(found, right, entities=True)
    assert next(iter(scores)) == "f1"
    assert scores == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6})
    assert tag_metrics(found, right, entities=False) == pytest.approx({"accuracy": 4 / 6})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"words": [["a"]], "ner_tags": [["N"]]}, "no column 'tokens'"),
        ({"tokens": [["a", "b"]], "ner_tags": [["N"]]}, "row 0 of the .* split: .* the same length"),
        ({"tokens": ["a b"], "ner_tags": [["N"]]}, "must hold lists"),
    ],
)
def test_tags_that_do_not_fit_words_are_refused_before_a_tokenizer_is_loaded(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        task(tmp_path, "token-classification", rows, str(tmp_path / "nowhere"))


def test_numbers_must_be_finite(tmp_path, classifier):
    with pytest.raises(DataError, match="must hold finite numbers"):
        task(tmp_path, "text-classification", {"text": ["a", "b"], "label": [0.5, float("nan")]}, classifier)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": 1.0}, "mlm_probability must lie"),
        ({"doc_stride": -1}, "doc_stride must be"),
        ({"max_seconds": 0.0}, "max_seconds must be"),
        ({"max_target_length": 0}, "max_target_length must be"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TaskConfig(type="x", dataset="y", **options)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "vit", "resnet", "deit"])
def test_a_head_that_knows_the_labels_under_other_numbers_goes_on_with_what_it_learnt(architecture, tmp_path):
    model = build(architecture)
    model.config.id2label, model.config.label2id = {0: "Yes", 1: "No"}, {"Yes": 0, "No": 1}
    model.save_pretrained(tmp_path)
    kind = "Sequence" if model.main_input_name == "input_ids" else "Image"
    head = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    found = model_for(
        SimpleNamespace(auto_class=f"AutoModelFor{kind}Classification", labels=("no", "yes"), head=head), str(tmp_path)
    ).eval()
    assert found.config.id2label == {0: "no", 1: "yes"}
    inputs = dummy_inputs(model, 2)
    with torch.no_grad():
        assert torch.allclose(found(**inputs).logits, model(**inputs).logits[:, [1, 0]], atol=1e-6)


def test_the_registry_has_every_task():
    assert set(TASKS) == {
        "text-classification", "token-classification", "question-answering", "causal-language-modeling",
        "masked-language-modeling", "sequence-to-sequence", "sentence-embeddings", "image-classification",
        "audio-classification",
    }  # fmt: skip
