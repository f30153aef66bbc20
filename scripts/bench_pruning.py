"""Accuracy of pruned MiniLM on SST-2 by criterion, sparsity and seed, at equal budgets, with and without distillation.

    python scripts/bench_pruning.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
The dense model is fine-tuned beforehand, say with train_text_classification.py. Each finished run is kept in the
output, so the script goes on where it was stopped. `--held-out` scores on training sentences put aside, for choosing
settings; without it the model is scored once, on the validation split, after training.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig
from hf_compress.measurement.environment import environment

CRITERIA = {
    "magnitude, one-shot": {"schedule": "constant", "begin": 0.0, "end": 0.0},
    "magnitude": {"scope": "global"},
    # As in its paper, in each weight apart: sums of gradients of different layers do not compare.
    "movement": {"criterion": "movement", "scope": "uniform", "regrow": True},
    "platon": {"criterion": "platon", "scope": "global", "regrow": True},
}


def accuracy(prediction) -> dict[str, float]:
    """Return the fraction of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def run(args, data, tokenizer, pruning: PruningConfig | None, distils: bool, seed: int) -> float:
    """Return the accuracy after one training run; of the dense model if there is nothing to prune."""
    model = AutoModelForSequenceClassification.from_pretrained(args.dense)
    terms = {"temperature": 2.0, "task_weight": 0.1, "logit_weight": 0.9, "hidden_weight": args.hidden_weight}
    distillation = DistillationConfig(**terms) if distils else None
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=args.batch_size, per_device_eval_batch_size=64,
            learning_rate=args.learning_rate, warmup_steps=0.05, bf16=True, seed=seed, report_to="none",
            train_sampling_strategy="group_by_length", save_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), logging_steps=200,
        )  # fmt: skip
        trainer = CompressionTrainer(
            model, arguments, train_dataset=data["train"], eval_dataset=data["test"], compute_metrics=accuracy,
            data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer,
            compression=CompressionConfig(distillation, pruning) if pruning else None,
            teacher=args.dense if distils else None,
        )  # fmt: skip
        if pruning:
            trainer.train()
        return trainer.evaluate()["eval_accuracy"]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--dense", required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--learning-rate", type=float, default=8e-5)
parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=list(CRITERIA))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--distil", type=int, nargs="+", default=[0, 1])
parser.add_argument("--hidden-weight", type=float, default=0.0)
parser.add_argument("--held-out", action="store_true")
args = parser.parse_args()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(args.dense)
files = {"train": str(args.data / "train.parquet"), "test": str(args.data / "validation.parquet")}
data = load_dataset("parquet", data_files=files)
data = data.map(lambda r: {**tokenizer(r["sentence"], truncation=True, max_length=128), "labels": r["label"]})
held_out = data["train"].train_test_split(2000, seed=0)
data = held_out if args.held_out else {"train": held_out["train"], "test": data["test"]}
found = json.loads(args.output.read_text())["runs"] if args.output.is_file() else {}
for seed, sparsity, name, distils in itertools.product(args.seeds, args.sparsities, args.criteria, args.distil):
    key = f"{sparsity:g} | {name} | {'distilled' if distils else 'alone'}"
    if "dense" not in found:
        found["dense"] = {"0": run(args, data, tokenizer, None, False, 0)}
    if str(seed) not in found.setdefault(key, {}):
        found[key][str(seed)] = run(
            args, data, tokenizer, PruningConfig(sparsity, exclude=("pooler",), **CRITERIA[name]), distils, seed
        )
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "dense", "output")}
    args.output.write_text(json.dumps({"settings": settings, "environment": environment(), "runs": found}, indent=2))
for key, scores in found.items():
    spread = statistics.stdev(scores.values()) if len(scores) > 1 else 0.0
    print(f"{key:45} {100 * statistics.mean(scores.values()):6.2f} +- {100 * spread:4.2f}  ({len(scores)} seeds)")
