"""Validation loss of a small character model that learns from one 7.5 times larger, by what it learns from.

    python scripts/bench_distillation_lm.py --data TINY_SHAKESPEARE_FOLDER --work FOLDER --output results.json
The teacher and its cache are kept in --work, and each finished run in the output: the script goes on where it stopped.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, cache_teacher
from hf_compress.measurement.environment import environment
from hf_compress.recipes.stages import fast_arguments

LENGTH = 256
KD = {"temperature": 1.0, "task_weight": 0.1, "logit_weight": 0.9}
VARIANTS = {
    "plain": None,
    "logits 0.5": {"temperature": 1.0, "cache": "yes"},
    "logits 0.9": {**KD, "cache": "yes"},
    "logits 1.0": {"temperature": 1.0, "task_weight": 0.0, "logit_weight": 1.0, "cache": "yes"},
    "+ hidden states": {**KD, "hidden_weight": 0.1},
    "+ relations": {**KD, "relation_weight": 1.0},
}


def blocks(rows, numbers, stride):
    """Cut the text of a split into overlapping blocks of characters, as numbers."""
    ids = torch.tensor([numbers[c] for c in "".join(rows["text"]) if c in numbers])
    cut = ids.unfold(0, LENGTH, stride).tolist()
    return Dataset.from_dict({"input_ids": cut, "labels": cut}).with_format("torch")


def new_model(layers, width, heads):
    """Make a Llama with tied embeddings."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = LlamaConfig(
        vocab_size=len(numbers), intermediate_size=4 * width * 2 // 3, max_position_embeddings=LENGTH, **sizes
    )
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


def train(model, steps, rate, seed, config=None, teacher=None):
    """Train, if there are steps; return the loss on the validation split."""
    arguments = TrainingArguments(
        str(args.work / "run"), max_steps=steps or 1, per_device_train_batch_size=32, per_device_eval_batch_size=64,
        learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.1, adam_beta2=0.99,
        seed=seed, prediction_loss_only=True, **fast_arguments() | {"save_strategy": "no", "logging_steps": 100},
    )  # fmt: skip
    compression = None if config is None else CompressionConfig(DistillationConfig(**config))
    extra = {"train_dataset": data["train"], "eval_dataset": data["validation"], "compression": compression}
    trainer = CompressionTrainer(model, arguments, teacher=teacher, **extra)
    if steps:
        trainer.train()
    return trainer.evaluate()["eval_loss"]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--teacher-steps", type=int, default=2000)
parser.add_argument("--learning-rate", type=float, default=3e-3)
parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--threads", type=int, default=1)
args = parser.parse_args()
torch.set_num_threads(args.threads)
texts = load_dataset("parquet", data_files={s: str(args.data / f"{s}.parquet") for s in ("train", "validation")})
numbers = {c: i for i, c in enumerate(sorted(set("".join(texts["train"]["text"]))))}
data = {"train": blocks(texts["train"], numbers, 128), "validation": blocks(texts["validation"], numbers, LENGTH)}
found = json.loads(args.output.read_text())["runs"] if args.output.is_file() else {}
if not (args.work / "teacher").exists():
    set_seed(0)
    model = new_model(4, 192, 6)
    train(model, args.teacher_steps, 1e-3, 0)
    model.save_pretrained(args.work / "teacher")
teacher = AutoModelForCausalLM.from_pretrained(args.work / "teacher")
found.setdefault("teacher", {"0": train(teacher, 0, 1e-3, 0)})
cache = cache_teacher(teacher, data["train"], args.work / "cache")
for seed, name in itertools.product(args.seeds, args.variants):
    if str(seed) in found.setdefault(name, {}):
        continue
    set_seed(seed)
    config = dict(VARIANTS[name]) if VARIANTS[name] is not None else None
    is_cached = config is not None and config.pop("cache", None) is not None
    config = {**config, "cache": str(cache)} if config is not None and is_cached else config
    asked = teacher if config is not None and not is_cached else None
    found[name][str(seed)] = train(new_model(2, 96, 3), args.steps, args.learning_rate, seed, config, asked)
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "work", "output", "threads")}
    args.output.write_text(json.dumps({"settings": settings, "environment": environment(), "runs": found}, indent=2))
for name, losses in found.items():
    print(f"{name:20} {statistics.mean(losses.values()):.4f}  {[round(v, 4) for v in losses.values()]}")
