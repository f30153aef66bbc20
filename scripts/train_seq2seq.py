"""Distil, prune and quantize a model that writes texts from texts (summaries, translations), on one process or many.

    accelerate launch scripts/train_seq2seq.py --model BASE --teacher FINE_TUNED --sparsity 0.5 \
        --prefix "summarize: " --source_column text --target_column summary \
        --train_file train.parquet --test_file test.parquet --output_dir out

What the model writes is compared with the target: exact match, and chrF and ROUGE-L if sacrebleu and rouge_score are
installed. All Seq2SeqTrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments

from hf_compress import Seq2SeqCompressionTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    source_column: str = field(default="source", metadata={"help": "column of the texts to read"})
    target_column: str = field(default="target", metadata={"help": "column of the texts to write"})
    prefix: str = field(default="", metadata={"help": "put before each source"})
    max_length: int = field(default=512, metadata={"help": "longest source, in tokens"})
    max_target_length: int = field(default=128, metadata={"help": "longest target, in tokens"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, Seq2SeqTrainingArguments)
    task = options.build(
        "sequence-to-sequence",
        arguments,
        text_columns=(options.source_column, options.target_column),
        prefix=options.prefix,
        max_length=options.max_length,
        max_target_length=options.max_target_length,
    )
    trainer = Seq2SeqCompressionTrainer(
        options.load_model(task), task.suited(arguments), **options.compress(), **task.for_trainer()
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
