"""What the SST-2 benchmarks share: data, training arguments, a table of runs that goes on where it was stopped."""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from hf_compress import cache_teacher
from hf_compress.measurement.environment import environment
from hf_compress.recipes.stages import fast_arguments


def parser(doc, steps, learning_rate):
    """Return the options that all have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="folder with train.parquet and validation.parquet")
    made.add_argument("--dense", required=True, help="folder of the fine-tuned model, as dense_sst2.py makes it")
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--unlabeled", type=Path, help="folder with train.parquet, a column text")
    made.add_argument("--cache", type=Path, help="folder for what the dense model says")
    made.add_argument("--steps", type=int, default=steps)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--learning-rate", type=float, default=learning_rate)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--held-out", action="store_true", help="score on training data put aside, for choices")
    return made


def load(args):
    """Return the tokenizer and the data: 2,000 training sentences are never trained on."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    files = {"train": str(args.data / "train.parquet"), "test": str(args.data / "validation.parquet")}
    data = load_dataset("parquet", data_files=files)
    data = data.map(lambda r: {**tokenizer(r["sentence"], truncation=True, max_length=128), "labels": r["label"]})
    held_out = data["train"].train_test_split(2000, seed=0)
    return tokenizer, held_out if args.held_out else {"train": held_out["train"], "test": data["test"]}


def unlabeled(args, tokenizer) -> list[dict] | None:
    """Return sentences of other text of 4 to 30 words, without labels; None if none is given."""
    if not args.unlabeled:
        return None
    lines = load_dataset("parquet", data_files=str(args.unlabeled / "train.parquet"))["train"]["text"]
    pieces = [s.strip() for line in lines for s in line.lower().split(" . ") if 4 <= len(s.split()) <= 30]
    return [dict(tokenizer(piece, truncation=True, max_length=64)) for piece in pieces]


def cached(args, tokenizer, data) -> Path:
    """Return the cache of what the dense model says of the training data, by default beside the output; made once."""
    return cache_teacher(
        AutoModelForSequenceClassification.from_pretrained(args.dense),
        data["train"],
        args.cache or args.output.with_suffix(".cache"),
        processing_class=tokenizer,
    )


def accuracy(prediction) -> dict[str, float]:
    """Return the fraction of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def score(trainer_class, model, args, seed, tokenizer, data, *, steps=None, **extra) -> float:
    """Train, for `args.steps` unless given, embeddings frozen unless they are new, and return the accuracy."""
    steps = args.steps if steps is None else steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps or 1, per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=64,
            learning_rate=args.learning_rate, warmup_steps=0.05, seed=seed, train_sampling_strategy="group_by_length",
            **fast_arguments() | {"save_strategy": "no", "logging_steps": 200},
        )  # fmt: skip
        trainer = trainer_class(
            model, arguments, train_dataset=data["train"], eval_dataset=data["test"], compute_metrics=accuracy,
            data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer, **extra,
        )  # fmt: skip
        if steps:
            trainer.train()
        return trainer.evaluate()["eval_accuracy"]


def sampled(data, collate, seed, samples) -> list[dict]:
    """Return batches of 32 of some training sentences, sorted by length, so that little is padding."""
    rows = data["train"].shuffle(seed=seed).select(range(samples))
    columns = ["input_ids", "attention_mask", "token_type_ids", "labels"]
    rows = sorted(({c: r[c] for c in columns} for r in rows), key=lambda r: len(r["input_ids"]))
    return [dict(collate(rows[i : i + 32])) for i in range(0, len(rows), 32)]


@torch.no_grad()
def exact_accuracy(model, data, collate) -> float:
    """Return the fraction of right answers in float32, without a Trainer."""
    model.eval()
    rows = sorted(data["test"], key=lambda r: len(r["input_ids"]))
    right = 0
    for i in range(0, len(rows), 64):
        part = [{c: r[c] for c in ("input_ids", "attention_mask", "labels")} for r in rows[i : i + 64]]
        batch = collate(part)
        right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(rows)


def table(args, cases, run, leave_out=("data", "dense", "output", "cache", "unlabeled")) -> None:
    """Fill in the runs that are missing, `run(case, seed)` for each, write after each, and print the means."""
    found = json.loads(args.output.read_text())["runs"] if args.output.is_file() else {}
    for seed in args.seeds:
        for case in cases:
            if str(seed) in found.setdefault(case, {}):
                continue
            found[case][str(seed)] = run(case, seed)
            settings = {k: v for k, v in vars(args).items() if k not in leave_out}
            place = {**environment(), "bf16": fast_arguments()["bf16"]}
            content = {"settings": settings, "environment": place, "runs": found}
            args.output.write_text(json.dumps(content, indent=2))
    for case, scores in found.items():
        spread = statistics.stdev(scores.values()) if len(scores) > 1 else 0.0
        print(f"{case:45} {100 * statistics.mean(scores.values()):6.2f} +- {100 * spread:4.2f}  ({len(scores)} seeds)")
