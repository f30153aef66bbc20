"""Distil and prune a text classifier, on one process or many.

    accelerate launch scripts/train_text_classification.py --model BASE --teacher FINE_TUNED --compression c.yaml \
        --train_file train.parquet --validation_file validation.parquet --text_column sentence --output_dir out
c.yaml is a CompressionConfig: see README.md. All TrainingArguments are options too.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
)

from hf_compress import CompressionConfig, CompressionTrainer


@dataclass
class Options:  # noqa: D101
    model: str = field(metadata={"help": "Hub id or folder of the student"})
    train_file: str = field(metadata={"help": "parquet file"})
    validation_file: str = field(metadata={"help": "parquet file"})
    compression: str | None = field(default=None, metadata={"help": "YAML or JSON of a CompressionConfig"})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder; needed for distillation"})
    text_column: str = field(default="text", metadata={"help": "column with the text"})
    label_column: str = field(default="label", metadata={"help": "column with the class id"})
    max_length: int = field(default=128, metadata={"help": "longest text, in tokens"})


def accuracy(prediction) -> dict[str, float]:
    """Return the fraction of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train, evaluate, and save the finished model to OUTPUT_DIR/compressed."""
    options, arguments = HfArgumentParser((Options, TrainingArguments)).parse_args_into_dataclasses()
    files = {"train": options.train_file, "validation": options.validation_file}
    data = load_dataset("parquet", data_files=files)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    labels = data["train"].features[options.label_column].names
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )

    def encode(rows: dict) -> dict:
        encoded = tokenizer(rows[options.text_column], truncation=True, max_length=options.max_length)
        return {**encoded, "labels": rows[options.label_column]}

    with arguments.main_process_first():
        data = data.map(encode, batched=True, remove_columns=data["train"].column_names).with_format("torch")
    trainer = CompressionTrainer(
        model,
        arguments,
        compression=CompressionConfig.load(options.compression) if options.compression else None,
        teacher=options.teacher,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    print(trainer.evaluate())
    if options.compression:
        print(trainer.save_compressed(f"{arguments.output_dir}/compressed"))
    if arguments.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
