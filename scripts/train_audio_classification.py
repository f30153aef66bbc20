"""Distil, prune and quantize a classifier of sounds, on one process or many.

    accelerate launch scripts/train_audio_classification.py --model BASE --teacher FINE_TUNED --sparsity 0.5 \
        --train_file train.parquet --test_file test.parquet --output_dir out

Sounds are files (datasets' Audio; read by soundfile) or lists of samples with a column that says how many a
second has; both are resampled to what the feature extractor of MODEL wants. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import CompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    audio_column: str = field(default="audio", metadata={"help": "column of sound files or samples"})
    rate_column: str = field(
        default="sampling_rate", metadata={"help": "column of the samples a second, if no file says so"}
    )
    label_column: str = field(default="label", metadata={"help": "column of the class"})
    max_seconds: float = field(default=10.0, metadata={"help": "longest sound; the rest is cut off"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "audio-classification",
        arguments,
        audio_column=options.audio_column,
        rate_column=options.rate_column,
        label_column=options.label_column,
        max_seconds=options.max_seconds,
    )
    trainer = CompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
