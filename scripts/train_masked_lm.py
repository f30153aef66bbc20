"""Distil, prune and quantize a masked language model on texts, on one process or many.

    accelerate launch scripts/train_masked_lm.py --model BASE --teacher BASE --layers 3 \
        --train_file train.txt --test_file test.txt --output_dir out

Training masks other tokens in each epoch; the rows of the evaluation are masked once, the same for every model, so
that results compare. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    text_column: str = field(default="text", metadata={"help": "column of texts"})
    max_length: int = field(default=128, metadata={"help": "tokens of a row"})
    mlm_probability: float = field(
        default=0.15, metadata={"help": "fraction of the tokens that is to be predicted, 0-1"}
    )


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "masked-language-modeling",
        arguments,
        text_columns=(options.text_column,),
        max_length=options.max_length,
        mlm_probability=options.mlm_probability,
    )
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
