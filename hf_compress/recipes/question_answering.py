"""Extractive questions in SQuAD's format: windows over long contexts, and the best span of all windows.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hf_compress.errors import DataError
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.data import load_rows
from hf_compress.recipes.metrics import answer_metrics
from hf_compress.recipes.task import TASKS, Task, forward_batches, load_tokenizer

# Candidates for each end of an answer in a window, and the longest answer in tokens, as in SQuAD's baselines.
_CANDIDATES, _LONGEST = 20, 30

Offsets = list[tuple[int, int] | None]


@dataclass(frozen=True)
class Windows:
    """Examples cut into windows that a model can read.

    Args:
        rows: model inputs with `start_positions` and `end_positions`, 0 where the answer is in another window.
        offsets: of each window the characters of the context that each token stands for, None for other tokens.
        examples: number of the example that each window is cut from.
    """

    rows: Any
    offsets: Sequence[Offsets]
    examples: Sequence[int]


@TASKS.register("question-answering")
def question_answering(config: TaskConfig, processor_source: str | None) -> Task:
    """The part of a context that answers a question; columns as in SQuAD 1.1."""
    from transformers import DataCollatorWithPadding

    columns = config.text_columns or ("question", "context")
    if len(columns) != 2:
        raise DataError(f"question-answering needs two text_columns, question and context, found {columns}")
    label = config.label_column or "answers"
    splits = load_rows(config, (*columns, label))
    examples = {name: list(_examples(part, columns, label, name)) for name, part in splits.rows.items()}
    tokenizer = load_tokenizer(config.type, processor_source)
    if not tokenizer.is_fast:
        raise DataError("question-answering needs a fast tokenizer, which knows the characters of each token")
    parts = {name: windows(found, tokenizer, config.max_length, config.doc_stride) for name, found in examples.items()}
    collator = DataCollatorWithPadding(tokenizer)

    def metrics(split: str, starts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> dict[str, float]:
        answers = best_answers(parts[split], [e[1] for e in examples[split]], starts, ends)
        return answer_metrics(answers, [e[2]["text"] for e in examples[split]])

    def quality(model: nn.Module, split: str) -> dict[str, float]:
        starts: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        for outputs, _ in forward_batches(model, parts[split].rows, collator):
            starts += list(outputs.start_logits.float().cpu().numpy())
            ends += list(outputs.end_logits.float().cpu().numpy())
        return metrics(split, starts, ends)

    return Task(
        auto_class="AutoModelForQuestionAnswering",
        pipeline_tag="question-answering",
        rows={name: part.rows for name, part in parts.items()},
        labels=(),
        collator=collator,
        processing_class=tokenizer,
        source={**splits.source, "questions": len(examples["test"])},
        arguments={},
        quality=quality,
        trainer_metrics=lambda p: metrics("validation", *p.predictions[:2]),
    )


def _examples(part: Any, columns: Sequence[str], label: str, split: str) -> Iterator[tuple[str, str, Mapping]]:
    """Yield question, context and answers."""
    for i, row in enumerate(part):
        question, context, answers = row[columns[0]], row[columns[1]], row[label]
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= set(answers):
            raise DataError(f"column {label!r} must hold lists called text and answer_start, as in SQuAD")
        if not answers["text"]:
            raise DataError(f"row {i} of the {split} split has no answer; leave such questions out (SQuAD 1.1)")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if start < 0 or context[start : start + len(text)] != text:
                raise DataError(f"row {i} of the {split} split: the answer {text!r} is not at character {start}")
        yield question, context, answers


def windows(examples: Sequence[tuple[str, str, Mapping]], tokenizer: Any, length: int, stride: int) -> Windows:
    """Cut examples into windows of at most `length` tokens, of which neighbours share `stride` of the context.

    Raises:
        DataError: if a question leaves no room for its context.
    """
    from datasets import Dataset

    questions, contexts = [e[0] for e in examples], [e[1] for e in examples]
    room = length - tokenizer.num_special_tokens_to_add(pair=True) - stride
    longest = max(len(ids) for ids in tokenizer(questions, add_special_tokens=False)["input_ids"])
    if longest >= room:
        raise DataError(
            f"a question has {longest} tokens, which leaves no room for its context: expected less than max_length - "
            f"doc_stride - special tokens = {room}"
        )
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    sources = encoded.pop("overflow_to_sample_mapping")
    offsets = [
        [(a, b) if which == 1 else None for (a, b), which in zip(spans, encoded.sequence_ids(i), strict=True)]
        for i, spans in enumerate(encoded.pop("offset_mapping"))
    ]
    ends = [span_tokens(o, examples[s][2]) for o, s in zip(offsets, sources, strict=True)]
    rows = {**encoded, "start_positions": [e[0] for e in ends], "end_positions": [e[1] for e in ends]}
    return Windows(Dataset.from_dict(rows), offsets, sources)


def span_tokens(offsets: Offsets, answers: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and last token of the first answer; (0, 0) if it is not whole in the window."""
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    first = [i for i, o in enumerate(offsets) if o is not None and o[0] <= begin < o[1]]
    last = [i for i, o in enumerate(offsets) if o is not None and o[0] < end <= o[1]]
    return (first[0], last[-1]) if first and last else (0, 0)


def best_answers(
    found: Windows, contexts: Sequence[str], starts: Sequence[np.ndarray], ends: Sequence[np.ndarray]
) -> list[str]:
    """Return the text of the best span of each example: the highest sum of the logits of its ends in any window.

    Args:
        found: windows of the examples.
        contexts: of the examples.
        starts: of each window logits (tokens) of being the first token; what is beyond its tokens is ignored.
        ends: of being the last one.
    """
    best: dict[int, tuple[float, str]] = {}
    for example, offsets, start, end in zip(found.examples, found.offsets, starts, ends, strict=True):
        inside = np.array([i for i, o in enumerate(offsets) if o is not None])
        firsts, lasts = (inside[np.argsort(-scores[inside], kind="stable")[:_CANDIDATES]] for scores in (start, end))
        pairs = [(i, j) for i in firsts for j in lasts if 0 <= j - i < _LONGEST]
        for i, j in pairs:
            score = float(start[i] + end[j])
            if example not in best or score > best[example][0]:
                first, last = offsets[i], offsets[j]
                # Neither is None: both are inside the context.
                best[example] = (score, contexts[example][first[0] : last[1]])
    return [best.get(i, (0.0, ""))[1] for i in range(len(contexts))]
