"""Do criteria say the same twice? Their scores over one half of some training steps against those over the other.

    python scripts/bench_scores.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json

Nothing is pruned. For each criterion that learns from gradients: the rank correlation of both halves, mean over the
encoder's weights; and which part of the largest tenth of weights is in the fifth that would go first (0.2 by chance).
"""

import json
import statistics

import sst2
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_compress.measurement.environment import environment
from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.criterion import Moment, Place

NAMES = ("movement", "taylor", "platon")
SAMPLE = 20_000


def watch(model, batches, steps, learning_rate):
    """Train for twice as many steps; returns the weights, and name -> criterion -> scores of each half."""
    model.base_model.embeddings.requires_grad_(False)
    weights = {n: p for n, p in model.named_parameters() if "encoder.layer" in n and p.dim() == 2}
    adam = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=learning_rate)
    criteria = {name: CRITERIA.get(name)() for name in NAMES}
    found = {n: {c: [] for c in NAMES} for n in weights}
    for half in range(2):
        state = {
            n: {c: {r: torch.zeros_like(p) for r in criteria[c].running} for c in NAMES} for n, p in weights.items()
        }
        for step in range(1, steps + 1):
            model(**next(batches)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for n, p in weights.items():
                for c, criterion in criteria.items():
                    criterion.observe_(p.detach(), p.grad, state[n][c], Moment(step))
            adam.step()
            adam.zero_grad()
        for n, p in weights.items():
            for c, criterion in criteria.items():
                found[n][c].append(criterion.scores(p.detach(), state[n][c], Place()).flatten())
        print(f"half {half + 1} of 2 is done", flush=True)
    return weights, found


def summary(weights, found):
    """Return what both halves have in common, by criterion."""
    draw = torch.Generator().manual_seed(0)
    rows = {c: {"rank correlation": [], "of the largest tenth": []} for c in NAMES}
    for name, weight in weights.items():
        some = torch.randperm(weight.numel(), generator=draw)[:SAMPLE]
        size = weight.detach().abs().flatten()[some]
        large = size >= size.quantile(0.9)
        for criterion in NAMES:
            one, other = (scores[some] for scores in found[name][criterion])
            rows[criterion]["rank correlation"].append(float(spearmanr(one, other).statistic))
            first = torch.zeros_like(large).index_fill_(0, one.argsort()[: len(some) // 5], True)
            rows[criterion]["of the largest tenth"].append(float(first[large].float().mean()))
    return {c: {k: statistics.mean(v) for k, v in row.items()} for c, row in rows.items()}


def forever(rows):
    """Yield batches of shuffled rows."""
    for epoch in range(1000):
        order = rows.shuffle(seed=epoch)
        for i in range(0, len(order) - args.batch_size, args.batch_size):
            yield collate(list(order.select(range(i, i + args.batch_size))))


parser = sst2.parser(__doc__, steps=100, learning_rate=2e-4)
parser.add_argument("--start", nargs="*", default=[], help="models to look at too, such as the one before fine-tuning")
args = parser.parse_args()
tokenizer, data = sst2.load(args)
collate = DataCollatorWithPadding(tokenizer)
rows = data["train"].select_columns(["input_ids", "attention_mask", "labels"])
content = {"settings": {"steps": args.steps, "learning_rate": args.learning_rate, "batch_size": args.batch_size}}
content |= {"environment": environment(), "runs": {}}
for place, label in zip([args.dense, *args.start], ["fine-tuned", "pretrained"], strict=False):
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=2).train()
    content["runs"][label] = summary(*watch(model, forever(rows), args.steps, args.learning_rate))
    for criterion, row in content["runs"][label].items():
        print(label, criterion, {k: round(v, 3) for k, v in row.items()})
args.output.write_text(json.dumps(content, indent=1) + "\n")
