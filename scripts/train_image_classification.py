"""Distil, prune and quantize a classifier of images, on one process or many.

    accelerate launch scripts/train_image_classification.py --model BASE --teacher FINE_TUNED \
        --structure ffn --sparsity 0.5 --train_file train.parquet --test_file test.parquet --output_dir out

Images are scaled as the image processor of MODEL says. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    image_column: str = field(default="image", metadata={"help": "column of the images"})
    label_column: str = field(default="label", metadata={"help": "column of the class"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "image-classification", arguments, image_column=options.image_column, label_column=options.label_column
    )
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
