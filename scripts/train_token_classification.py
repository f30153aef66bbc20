"""Distil, prune and quantize a tagger of words (named entities, parts of speech), on one process or many.

    accelerate launch scripts/train_token_classification.py --model BASE --teacher FINE_TUNED --sparsity 0.5 \
        --train_file train.parquet --test_file test.parquet --output_dir out

A row holds a list of words and a list of tags; the first token of a word has its tag. Entities (tags such as B-PER)
are scored whole, by seqeval; other tags by their accuracy. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    words_column: str = field(default="tokens", metadata={"help": "column of the words of a text"})
    tags_column: str = field(default="ner_tags", metadata={"help": "column of their tags"})
    max_length: int = field(default=128, metadata={"help": "longest text, in tokens"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "token-classification",
        arguments,
        text_columns=(options.words_column,),
        label_column=options.tags_column,
        max_length=options.max_length,
    )
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
