"""Questions on texts: windows, spans and scores."""

import numpy as np
import pytest
import tiny_tasks
import torch
from transformers import AutoModelForQuestionAnswering

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.metrics import answer_metrics
from hf_compress.recipes.question_answering import best_answers, windows
from hf_compress.recipes.tasks import build_task

CONTEXT = "it was good " * 6 + "ann saw the film in paris " + "it was bad " * 6


def example(answer="ann", context=CONTEXT):
    return "who saw it", context, {"text": [answer], "answer_start": [context.index(answer)]}


@pytest.mark.parametrize("answer", ["ann", "the film", "it", "paris"])
def test_each_window_points_at_the_answer_or_at_nothing(answer):
    words = tiny_tasks.tokenizer()
    question, context, answers = example(answer)
    found = windows([(question, context, answers)], words, length=24, stride=6)
    assert len(found.rows) > 3
    begin, hits = answers["answer_start"][0], 0
    for row, offsets in zip(found.rows, found.offsets, strict=True):
        assert len(row["input_ids"]) <= 24
        start, end = row["start_positions"], row["end_positions"]
        spans = [o for o in offsets if o is not None]
        is_whole = spans[0][0] <= begin and begin + len(answer) <= spans[-1][1]
        assert (start > 0) == is_whole
        if is_whole:
            hits += 1
            assert context[offsets[start][0] : offsets[end][1]] == answer
    assert hits >= 1
    # Together the windows have all of the context.
    covered = {c for offsets in found.offsets for o in offsets if o for c in range(*o)}
    assert covered == {i for i, c in enumerate(context) if c != " "}


def test_the_best_span_is_that_of_a_search_over_all_spans_of_all_windows():
    words, generator = tiny_tasks.tokenizer(), np.random.default_rng(0)
    examples = [example(), example("bad"), example("film", "the film was good")]
    found = windows(examples, words, length=24, stride=6)
    sizes = [len(o) + 3 for o in found.offsets]  # padding behind
    starts, ends = ([generator.normal(size=n) for n in sizes] for _ in range(2))
    expected = {}
    for w, (number, offsets) in enumerate(zip(found.examples, found.offsets, strict=True)):
        for i, first in enumerate(offsets):
            for j, last in enumerate(offsets):
                if first is None or last is None or not 0 <= j - i < 30:
                    continue
                score = starts[w][i] + ends[w][j]
                if score > expected.get(number, (-np.inf, ""))[0]:
                    expected[number] = (score, examples[number][1][first[0] : last[1]])
    contexts = [e[1] for e in examples]
    assert best_answers(found, contexts, starts, ends) == [expected[i][1] for i in range(3)]


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("The Film!", ["film"], 1, 1),
        ("a cat", ["the black cat"], 0, 2 * (1 / 1) * (1 / 2) / (1 / 1 + 1 / 2)),
        ("cat cat", ["cat"], 0, 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("dog", ["cat", "dog"], 1, 1),
        ("", ["cat"], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_scores_are_squads(found, right, exact, f1):
    assert answer_metrics([found], [right]) == pytest.approx({"exact_match": exact, "f1": f1})


def test_a_model_that_points_at_the_answers_gets_them_all(tmp_path):
    source = tiny_tasks.save_bert(tmp_path / "bert", AutoModelForQuestionAnswering)
    file = tiny_tasks.write(tmp_path / "rows.parquet", tiny_tasks.questions())
    files = {"train": file, "test": file}
    task = build_task(TaskConfig(type="question-answering", files=files, max_length=32, doc_stride=16), source)
    model = AutoModelForQuestionAnswering.from_pretrained(source)
    untrained = task.evaluate(model)
    rows = iter(task.rows["test"])

    class Knowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, **kwargs):
            starts, ends = torch.zeros(2, *input_ids.shape)
            for i in range(len(input_ids)):
                row = next(rows)
                sure = 9.0 if row["start_positions"] else -9.0
                starts[i, row["start_positions"]], ends[i, row["end_positions"]] = sure, sure
            return type("Outputs", (), {"start_logits": starts, "end_logits": ends})

    assert task.evaluate(Knowing()) == {"exact_match": 1.0, "f1": 1.0}
    assert untrained["exact_match"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": [], "answer_start": []}}, "has no answer"),
        ({"answers": {"text": ["ann"], "answer_start": [3]}}, "is not at character 3"),
        ({"question": "who " * 30}, "leaves no room for its context"),
    ],
)
def test_questions_that_cannot_be_learnt_are_refused(tmp_path, change, message):
    source = tiny_tasks.save_bert(tmp_path / "bert", AutoModelForQuestionAnswering)
    rows = tiny_tasks.questions(4)
    for name, value in change.items():
        rows[name][2] = value
    file = tiny_tasks.write(tmp_path / "rows.parquet", rows)
    config = TaskConfig(type="question-answering", files={"train": file, "test": file}, max_length=32, doc_stride=8)
    with pytest.raises(DataError, match=message):
        build_task(config, source)
