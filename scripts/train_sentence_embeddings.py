"""Distil, prune and quantize a model of sentence embeddings, on one process or many.

    accelerate launch scripts/train_sentence_embeddings.py --model TEACHER --layers 3 --embedding_model TEACHER \
        --train_file train.parquet --test_file test.parquet --text_column sentence --output_dir out

The mean-pooled embeddings of EMBEDDING_MODEL are computed once and learnt from unlabelled text; results are the cosine
with them and the rank correlation of all similarities between texts. Both need the same width. --teacher adds terms of
its own, such as --hidden_weight with --logit_weight 0. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_compress import EmbeddingTrainer
from hf_compress.recipes.script import ScriptOptions, parse, run


@dataclass
class Options(ScriptOptions):
    """What this task needs besides the options of every script."""

    embedding_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the model whose embeddings are learnt"}
    )
    text_column: str = field(default="text", metadata={"help": "column of texts"})
    embedding_loss: str = field(default="cosine", metadata={"help": "distance to its embeddings: cosine or mse"})
    max_length: int = field(default=128, metadata={"help": "longest text, in tokens"})


def main() -> None:
    """Train, and write the finished model to OUTPUT_DIR/compressed."""
    options, arguments = parse(Options, TrainingArguments)
    task = options.build(
        "sentence-embeddings",
        arguments,
        text_columns=(options.text_column,),
        embedding_model=options.embedding_model,
        max_length=options.max_length,
    )
    trainer = EmbeddingTrainer(
        options.load_model(task),
        task.suited(arguments),
        embedding_loss=options.embedding_loss,
        **options.compress(),
        **task.for_trainer(),
    )
    run(trainer, task, options)


if __name__ == "__main__":
    main()
