"""Clicks of users on items, made up from a seed: a wide network of embeddings, distilled into a small one with zeros.

    python scripts/textbook_recommender.py --output out [--test]
The area under the ROC curve is that of rows put aside, by which everything here was chosen; with --test of other ones.
`oracle` is that of the probabilities that the clicks were drawn from. Embeddings are stored in 8 bits too.
"""

import textbook
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from hf_compress import CompressionConfig, DistillationConfig, PruningConfig, export

USERS, ITEMS, FACTORS, ROWS, SCORED = 1000, 500, 6, 200_000, 20_000


class Recommender(nn.Module):
    """Embeddings of users and items, their products, and two hidden layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, width), nn.Embedding(ITEMS, width)
        for table in (self.user, self.item):  # with torch's default their products are noise at first
            nn.init.normal_(table.weight, std=0.1)
        self.body = nn.Sequential(nn.Linear(3 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 1)

    def forward(self, user, item, labels=None):
        """Return the logit of a click of each row (batch, 1), and with labels (batch,), 0.0 or 1.0, the loss."""
        one, other = self.user(user), self.item(item)
        logits = self.head(self.body(torch.cat([one, other, one * other], -1)))
        loss = {} if labels is None else {"loss": F.binary_cross_entropy_with_logits(logits[:, 0], labels)}
        return {**loss, "logits": logits}


def make_rows():
    """Return users, items and clicks by column, and the probabilities that these were drawn from."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(n, FACTORS, generator=generator) for n in (USERS, ITEMS)]
    user, item = (torch.randint(n, (ROWS + 2 * SCORED,), generator=generator) for n in (USERS, ITEMS))
    chance = torch.sigmoid((factors[0][user] * factors[1][item]).sum(-1))
    return {"user": user, "item": item, "labels": torch.bernoulli(chance, generator=generator)}, chance


args = textbook.parser(__doc__).parse_args()
data, chance = make_rows()
training = [
    dict(zip(data, row, strict=True)) for row in zip(*(column[:ROWS] for column in data.values()), strict=True)
]
place = slice(ROWS + SCORED, None) if args.test else slice(ROWS, ROWS + SCORED)
inputs, answers = {name: data[name][place] for name in ("user", "item")}, data["labels"][place]
settings = {"per_device_train_batch_size": 512, "learning_rate": 3e-3, "weight_decay": 0.01, "seed": args.seed}
torch.manual_seed(args.seed)
large = textbook.train(Recommender(64, 256), args.output / "large", training, settings)
config = CompressionConfig(DistillationConfig(temperature=1.0), PruningConfig(sparsity=0.5, criterion="magnitude"))
small = Recommender(16, 32)
small = textbook.train(small, args.output / "small", training, settings, compression=config, teacher=large)
part = args.output / ("test" if args.test else "held_out")
first = {name: data[name][:64] for name in inputs}
int8 = export(small, "onnx", part / "int8", quantization="dynamic", batches=[first])
textbook.report(
    {"large": large, "small": small, "int8": int8}, part, args, inputs=first,
    evaluate=lambda model: {"roc_auc": roc_auc_score(answers, model(**inputs)["logits"].detach().flatten())},
    dataset={"id": "made up", "split": part.name, "samples": SCORED},
)  # fmt: skip
print(f"oracle: {roc_auc_score(answers, chance[place]):.4f}")
