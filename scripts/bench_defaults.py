"""What pruning should do by default: accuracy by criterion, scope and regrowth of a vision transformer on digits.

    python scripts/bench_defaults.py --output defaults_digits.json
scikit-learn's 1,797 images of 8x8: each seed trains a dense model on three fifths of them, prunes it in the Trainer
for half as many steps again, without a teacher, and scores it on a fifth put aside; the last fifth stays unseen.
Each finished run is kept in the output. bench_pruning.py has the same cases on MiniLM.
"""

import argparse
import copy
import tempfile
from functools import cache
from pathlib import Path

import sst2
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_compress import CompressionConfig, CompressionTrainer, PruningConfig
from hf_compress.recipes.stages import fast_arguments

WEIGHTS = {
    "magnitude": {"criterion": "magnitude"},
    "magnitude, global": {"criterion": "magnitude", "scope": "global"},
    "taylor": {"criterion": "taylor"},
    "platon": {"criterion": "platon", "scope": "uniform"},
    "platon, global": {"criterion": "platon", "scope": "global"},
    "platon, global, regrowth": {"criterion": "platon", "scope": "global", "regrow": True},
}
ALIKE = ("magnitude", "taylor", "platon")
CASES = {
    **{f"{s} | {name}": {"sparsity": s, **options} for s in (0.9, 0.95) for name, options in WEIGHTS.items()},
    **{f"2:4 | {name}": {"structure": "2:4", **WEIGHTS[name]} for name in ALIKE},
    **{f"ffn 0.75 | {n}": {"structure": "ffn", "sparsity": 0.75, **WEIGHTS[n]} for n in ALIKE},
}


def split() -> tuple[Dataset, Dataset]:
    """Return what is trained on and what is scored."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    rows = Dataset.from_dict({"pixel_values": images.numpy(), "labels": labels}).with_format("torch")
    rows = rows.shuffle(seed=1)
    fifth = len(rows) // 5
    return rows.select(range(3 * fifth)), rows.select(range(3 * fifth, 4 * fifth))


def train(model, seed, epochs, compression=None):
    """Train on one thread and return the accuracy on what was put aside."""
    training, held_out = split()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=7e-4, warmup_steps=0.05,
            weight_decay=0.05, seed=seed, per_device_eval_batch_size=512,
            **fast_arguments() | {"save_strategy": "no", "logging_steps": 1000},
        )  # fmt: skip
        trainer = CompressionTrainer(
            model, arguments, train_dataset=training, eval_dataset=held_out, compute_metrics=sst2.accuracy,
            compression=compression,
        )  # fmt: skip
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]


@cache
def dense(seed):
    """Return a trained model and its accuracy."""
    set_seed(seed)
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **shape))
    return model, train(model, seed, 40)


def run(case, seed):
    """Prune once; with no case score the dense model."""
    model, found = dense(seed)
    if case == "dense":
        return found
    return train(copy.deepcopy(model), seed, 20, CompressionConfig(pruning=PruningConfig(**CASES[case])))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
args = parser.parse_args()
torch.set_num_threads(1)
sst2.table(args, ["dense", *CASES], run)
