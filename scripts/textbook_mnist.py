"""MNIST by a plain convolutional `nn.Module`: trained, distilled into a smaller one with zeros, stored in 8 bits.

    python scripts/textbook_mnist.py --data mnist --output out [--test]
Scores are on 5,000 training images put aside, by which everything here was chosen; with --test on the 10,000 of the
test set.
"""

from pathlib import Path

import numpy as np
import textbook
import torch
import torch.nn.functional as F
from datasets import load_dataset
from torch import nn

from hf_compress import CompressionConfig, DistillationConfig, PruningConfig, export


class Network(nn.Module):
    """Two convolutions of 3x3, each pooled, and a hidden layer."""

    def __init__(self, first: int, second: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, first, 3, padding=1), nn.Conv2d(first, second, 3, padding=1)]
        self.body = nn.Sequential(*(nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2)) for layer in layers))
        self.hidden, self.head = nn.Linear(49 * second, hidden), nn.Linear(hidden, 10)

    def forward(self, pixel_values, labels=None):
        """Return logits (batch, 10) of images (batch, 1, 28, 28), and with labels the loss."""
        logits = self.head(self.hidden(self.body(pixel_values).flatten(1)).relu())
        return {**({} if labels is None else {"loss": F.cross_entropy(logits, labels)}), "logits": logits}


def rows(split):
    """Return images, 0-1, and labels, one mapping each."""
    pixels = (torch.from_numpy(np.array(r["image"], np.float32))[None] / 255 for r in split)
    return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, split["label"], strict=True)]


def batches(data, size):
    """Yield images and labels, `size` rows at a time."""
    for part in (data[i : i + size] for i in range(0, len(data), size)):
        yield torch.stack([row["pixel_values"] for row in part]), torch.tensor([row["labels"] for row in part])


def accuracy(model):
    """Return the fraction of images that get their label."""
    right = [model(pixel_values=p)["logits"].argmax(-1) == y for p, y in batches(scored, 500)]
    return {"accuracy": float(torch.cat(right).float().mean())}


made = textbook.parser(__doc__)
made.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
args = made.parse_args()
data = load_dataset("parquet", data_files={s: str(args.data / f"{s}.parquet") for s in ("train", "test")})
images = rows(data["train"])
training, scored = images[:-5000], rows(data["test"]) if args.test else images[-5000:]
settings = {"per_device_train_batch_size": 128, "learning_rate": 2e-3}
torch.manual_seed(0)
large = textbook.train(Network(32, 64, 128), args.output / "large", training, settings)
config = CompressionConfig(DistillationConfig(temperature=4.0), PruningConfig(sparsity=0.5))
small = Network(16, 32, 48)
small = textbook.train(small, args.output / "small", training, settings, compression=config, teacher=large)
samples = [{"pixel_values": pixels} for pixels, _ in batches(training[:1000], 50)]
part = args.output / ("test" if args.test else "held_out")
int8 = export(small, "onnx", part / "int8", quantization="static", batches=samples)
about = {"id": "mnist", "split": part.name, "samples": len(scored)}
models = {"large": large, "small": small, "int8": int8}
textbook.report(models, part, inputs=samples[0], evaluate=accuracy, dataset=about)
