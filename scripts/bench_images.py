"""Small networks on Fashion-MNIST: what a teacher and gradual pruning give, beside labels and torch's own pruning.

    python scripts/bench_images.py --data fashion_mnist --work models --output results.json [--test]
A plain convolutional module is the teacher. Smaller ones and a vision transformer learn from it, each beside the same
trained on labels alone for as many steps on as many shifted and mirrored images; and its own weights are zeroed, by
the Trainer, alone or with itself as teacher, or by torch.nn.utils.prune and the stock Trainer, for as many steps.
"int8" is ONNX Runtime's, static, without training. Scores are on 1,500 training images put aside; with --test on the
test set. Each finished run is kept in the output, the teachers in `--work`.
"""

import argparse
import copy
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import sst2
import torch
import torch.nn.functional as F
from datasets import load_dataset
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.utils import prune
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig, export
from hf_compress.measurement.exported import ExportedModule
from hf_compress.recipes.stages import fast_arguments

HELD_OUT = 1500
LEARNT = ("labels", "distilled")
# The default and two others, to choose it by.
TERMS = {
    "distilled": DistillationConfig(),
    "distilled at T 1": DistillationConfig(temperature=1.0),
    "distilled at T 4, 0.9": DistillationConfig(temperature=4.0, task_weight=0.1, logit_weight=0.9),
}
STUDENTS = {"small": (12, 24, 24, 48, 48), "vit": None}
SPARSITIES = (0.9, 0.95, 0.98)
CASES = [
    *(f"{s} | {how}" for s in STUDENTS for how in LEARNT),
    *(f"{s} | {how}" for s in SPARSITIES for how in ("torch.nn.utils.prune", "alone", "distilled")),
    "0.75 | distilled", "0.75 | distilled, int8", "dense | int8",
]  # fmt: skip
# The default and others.
PRUNED = {
    "alone": {},
    "magnitude, at once": {
        "criterion": "magnitude",
        "scope": "global",
        "schedule": "constant",
        "begin": 0.0,
        "end": 0.0,
    },
    "magnitude": {"criterion": "magnitude", "scope": "global"},
    "taylor": {"criterion": "taylor", "scope": "global"},
    "lamp": {"criterion": "lamp"},
    "platon, regrowth": {"regrow": True},
    "platon, until 0.35": {"end": 0.35},
}
CHOICES = [
    *(f"{name} | {how}" for name in ("small", 0.95) for how in TERMS if how != "distilled"),
    *(f"0.95 | {how}" for how in PRUNED if how != "alone"),
]


class Network(nn.Module):
    """Five 3x3 convolutions with batch normalisation, pooled after the first and the third, and a mean over places."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(zip((1, *widths[:-1]), widths, strict=True)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if place in (0, 2) else []
        self.body, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 10)

    def forward(self, pixel_values, labels=None):
        """Return logits (batch, 10) of images (batch, 1, 28, 28), and with labels the loss."""
        logits = self.head(self.body(pixel_values).mean((2, 3)))
        return {**({} if labels is None else {"loss": F.cross_entropy(logits, labels)}), "logits": logits}


class Images(torch.utils.data.Dataset):
    """Images in whole batches; those to train on are shifted by up to two pixels and mirrored, anew each time."""

    def __init__(self, rows, moved: bool) -> None:
        pixels = np.stack([np.array(r, np.float32) for r in rows["image"]])
        self.pixels, self.labels, self.moved = torch.from_numpy(pixels)[:, None] / 127.5 - 1, rows["label"], moved
        self.labels = torch.tensor(self.labels[:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices):
        """Return a whole batch, which the collator passes on."""
        pixels = self.pixels[indices]
        if self.moved:
            pixels = F.pad(pixels, (2, 2, 2, 2), value=-1.0)
            places = torch.randint(5, (len(indices), 2)).tolist()
            pixels = torch.stack([p[:, y : y + 28, x : x + 28] for p, (y, x) in zip(pixels, places, strict=True)])
            pixels = torch.where(torch.rand(len(indices), 1, 1, 1) < 0.5, pixels, pixels.flip(-1))
        return {"pixel_values": pixels, "labels": self.labels[indices]}

    def __getitem__(self, index):
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def untrained(name):
    """Return a student."""
    if STUDENTS[name]:
        return Network(STUDENTS[name])
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return ViTForImageClassification(ViTConfig(image_size=28, patch_size=4, num_channels=1, num_labels=10, **shape))


def train(model, seed, epochs, learning_rate, trainer_class=CompressionTrainer, **compression):
    """Train on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=128, learning_rate=learning_rate, seed=seed,
            lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.05, remove_unused_columns=False,
            **fast_arguments() | {"save_strategy": "no", "logging_steps": 500},
        )  # fmt: skip
        collate = {"data_collator": lambda batch: batch}
        trainer_class(model, arguments, train_dataset=training, **collate, **compression).train()
    return model.eval()


@torch.inference_mode()
def accuracy(model):
    """Return the fraction of images that get their label."""
    right = []
    for first in range(0, len(scored), 500):
        batch = scored.__getitems__(list(range(first, min(first + 500, len(scored)))))
        right.append(model(pixel_values=batch["pixel_values"])["logits"].argmax(-1) == batch["labels"])
    return float(torch.cat(right).float().mean())


def dense(seed):
    """Return the teacher, trained once."""
    file = args.work / f"teacher-{seed}-{args.epochs}.safetensors"
    set_seed(seed)
    model = Network((32, 64, 64, 128, 128))
    if file.is_file():
        load_model(model, file)
        return model.eval()
    train(model, seed, args.epochs, 2e-3)
    args.work.mkdir(parents=True, exist_ok=True)
    save_model(model, file)
    return model


def run(case, seed):
    """Train once and return the accuracy; with no case that of the teacher."""
    teacher = dense(seed)
    if case == "dense":
        return accuracy(teacher)
    name, how = case.split(" | ")
    if name == "dense":
        return accuracy_in_8_bit(teacher)
    set_seed(seed)
    if name in STUDENTS:
        learnt = {"compression": CompressionConfig(TERMS[how]), "teacher": teacher} if how in TERMS else {}
        return accuracy(train(untrained(name), seed, args.student_epochs, 2e-3, **learnt))
    if how == "torch.nn.utils.prune":
        model = copy.deepcopy(teacher).train()
        matrices = [(m, "weight") for m in model.body if isinstance(m, nn.Conv2d)]
        prune.global_unstructured(matrices, prune.L1Unstructured, amount=float(name))
        return accuracy(train(model, seed, args.pruning_epochs, 1e-3, trainer_class=Trainer))
    model = pruned(float(name), seed, how.removesuffix(", int8"))
    return accuracy_in_8_bit(model) if "int8" in how else accuracy(model)


def accuracy_in_8_bit(model):
    """Return the accuracy of the same model exported."""
    with tempfile.TemporaryDirectory() as folder:
        samples = [{"pixel_values": training.pixels[i : i + 50]} for i in range(0, 500, 50)]
        exported = export(model, "onnx", Path(folder) / "int8", quantization="static", batches=samples)
        return accuracy(ExportedModule(exported))


@cache
def pruned(sparsity, seed, how):
    """Return the teacher with fewer weights, trained on labels alone or with itself as it was."""
    teacher = dense(seed)
    compression = CompressionConfig(TERMS.get(how), PruningConfig(sparsity, **PRUNED.get(how, {})))
    model = copy.deepcopy(teacher).train()
    learnt = {"teacher": teacher} if how in TERMS else {}
    return train(model, seed, args.pruning_epochs, 1e-3, compression=compression, **learnt)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
parser.add_argument("--work", type=Path, required=True, help="folder for the teachers")
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument(
    "--cases", nargs="+", default=CASES, choices=[*CASES, *CHOICES], metavar="CASE", help="an unknown one lists them"
)
parser.add_argument("--epochs", type=int, default=30, help="of the teacher")
parser.add_argument("--student-epochs", type=int, default=20)
parser.add_argument("--pruning-epochs", type=int, default=5)
parser.add_argument("--test", action="store_true", help="score on what nothing was chosen by")
args = parser.parse_args()
torch.set_num_threads(1)
data = load_dataset("parquet", data_files={s: str(args.data / f"{s}.parquet") for s in ("train", "test")})
images = data["train"].train_test_split(HELD_OUT, seed=0)
training = Images(images["train"], moved=True)
scored = Images(data["test"] if args.test else images["test"], moved=False)
sst2.table(args, ["dense", *args.cases], run, leave_out=("data", "work", "output", "cases"))
