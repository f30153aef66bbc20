"""Distil, prune and quantize a language model on texts or chats, on one process or many.

    accelerate launch scripts/train_causal_lm.py --model BASE --structure 2:4 --quantization nf4 \
        --train_file train.txt --test_file test.txt --output_dir out

Texts are joined and cut into rows of MAX_LENGTH tokens. If the column holds lists of messages (role, content), they
are chats: the tokenizer's template writes them, and the loss is on the assistant's turns where the template marks
these. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    text_column: str = field(default="text", metadata={"help": "column of texts, or of the messages of chats"})
    max_length: int = field(default=512, metadata={"help": "tokens of a row; longest chat"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "causal-language-modeling",
        arguments,
        text_columns=(options.text_column,),
        max_length=options.max_length,
    )
    if "loss" in task.source:
        print(f"chats: the loss is on {task.source['loss']}")
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
