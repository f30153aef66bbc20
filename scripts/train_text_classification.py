"""Distil, prune and quantize a classifier of texts or pairs of texts, on one process or many.

    accelerate launch scripts/train_text_classification.py --model BASE --teacher FINE_TUNED --sparsity 0.5 \
        --train_file train.parquet --test_file test.parquet --text_columns sentence --output_dir out

Labels decide what is learnt: one class a row, lists of classes (multi-label: sigmoid, F1), or fractions (regression:
squared error, correlations). All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "column of the text, or two columns of a pair"}
    )
    label_column: str = field(default="label", metadata={"help": "column of a class, a list of classes or a number"})
    max_length: int = field(default=128, metadata={"help": "longest text, in tokens"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "text-classification",
        arguments,
        text_columns=tuple(options.text_columns),
        label_column=options.label_column,
        max_length=options.max_length,
    )
    # A head of classes that exclude each other, of classes that do not, or of one number.
    print(f"{task.problem_type or 'single_label_classification'}: {', '.join(task.labels) or 'numbers'}")
    trainer = CompressionTrainer(
        options.load_model(task),
        task.suited(arguments),
        **options.compress(),
        **task.for_trainer(),
        unlabeled_dataset=task.unlabeled,
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
