"""Distil, prune and quantize a model that finds answers in a text (SQuAD), on one process or many.

    accelerate launch scripts/train_question_answering.py --model BASE --teacher FINE_TUNED --sparsity 0.5 \
        --train_file train.parquet --test_file test.parquet --output_dir out

Contexts longer than a window are read in several that overlap; the best span of all is the answer, scored by exact
match and F1. Logits of start and end are distilled. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    question_column: str = field(default="question", metadata={"help": "column of the question"})
    context_column: str = field(default="context", metadata={"help": "column of the text with the answer"})
    answers_column: str = field(default="answers", metadata={"help": "column of the answers: text and answer_start"})
    max_length: int = field(default=384, metadata={"help": "tokens of a window: question and context"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that two windows of a context share"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "question-answering",
        arguments,
        text_columns=(options.question_column, options.context_column),
        label_column=options.answers_column,
        max_length=options.max_length,
        doc_stride=options.doc_stride,
    )
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
