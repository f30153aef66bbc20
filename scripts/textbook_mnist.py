"""MNIST by a plain convolutional `nn.Module`: trained, distilled into two smaller ones with zeros, stored in 8 bits.

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
    """Two pairs of 3x3 convolutions, each pair pooled, and a hidden layer."""

    def __init__(self, first: int, second: int, hidden: int) -> None:
        super().__init__()
        widths = [(1, first), (first, first), (first, second), (second, second)]
        convolutions = [nn.Sequential(nn.Conv2d(*width, 3, padding=1), nn.ReLU()) for width in widths]
        self.body = nn.Sequential(*convolutions[:2], nn.MaxPool2d(2), *convolutions[2:], nn.MaxPool2d(2))
        self.hidden, self.head = nn.Linear(49 * second, hidden), nn.Linear(hidden, 10)

    def forward(self, pixel_values, labels=None):
        """Return logits (batch, 10) of images (batch, 1, 28, 28), and with labels the loss."""
        logits = self.head(self.hidden(self.body(pixel_values).flatten(1)).relu())
        return {**({} if labels is None else {"loss": F.cross_entropy(logits, labels)}), "logits": logits}


class Shifted(torch.utils.data.Dataset):
    """Training images, moved by up to two pixels each way, anew each time."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        row = self.data[index]
        top, left = torch.randint(5, (2,)).tolist()
        return {**row, "pixel_values": F.pad(row["pixel_values"], (2, 2, 2, 2))[:, top : top + 28, left : left + 28]}


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
settings = {"per_device_train_batch_size": 128, "learning_rate": 2e-3, "seed": args.seed}
samples = [{"pixel_values": pixels} for pixels, _ in batches(training[:1000], 50)]
part = args.output / ("test" if args.test else "held_out")
torch.manual_seed(args.seed)
models = {"large": textbook.train(Network(24, 48, 192), args.output / "large", Shifted(training), settings)}
learn = {"compression": CompressionConfig(DistillationConfig(temperature=4.0), PruningConfig(sparsity=0.5))}
learn["teacher"] = models["large"]
# A tenth and a twentieth of the bytes, once they are stored in 8 bits.
for name, widths in {"tenth": (16, 32, 80), "twentieth": (12, 24, 40)}.items():
    torch.manual_seed(args.seed)
    small = textbook.train(Network(*widths), args.output / name, Shifted(training), settings, **learn)
    int8 = export(small, "onnx", part / f"{name}-int8", quantization="static", batches=samples)
    models |= {name: small, f"{name}-int8": int8}
about = {"id": "mnist", "split": part.name, "samples": len(scored)}
textbook.report(models, part, args, inputs=samples[0], evaluate=accuracy, dataset=about)
