"""Accuracy of pruned MiniLM on SST-2 by criterion, sparsity and seed, at equal budgets, with and without distillation.

"sparsegpt" prunes between rounds of training (`prune_oneshot`), with the training of `criterion="keep"` after each.
"torch.nn.utils.prune" is torch's own global pruning and the stock Trainer, from the same model for as many steps.
"ffn" and "layers" zero whole neurons and layers, as many in each layer, such as `shrink` removes.

    python scripts/bench_pruning.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
The dense model is fine-tuned beforehand, say with train_text_classification.py; its embeddings are frozen. Each
finished run is kept in the output, so the script goes on where it was stopped.
"""

import sst2
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    OneShotConfig,
    PruningConfig,
    prune_oneshot,
)

CRITERIA = {
    "magnitude, one-shot": {"criterion": "magnitude", "schedule": "constant", "begin": 0.0, "end": 0.0},
    "magnitude": {"criterion": "magnitude", "scope": "global"},
    "magnitude, uniform": {"criterion": "magnitude"},
    # As in its paper, in each weight apart: sums of gradients of different layers do not compare.
    "movement": {"criterion": "movement", "scope": "uniform", "regrow": True},
    "platon": {"criterion": "platon", "scope": "global", "regrow": True},
    "platon, no regrowth": {"criterion": "platon", "scope": "global"},
    "platon, uniform": {"criterion": "platon", "scope": "uniform", "regrow": True},
    "platon, uniform, no regrowth": {"criterion": "platon", "scope": "uniform"},
    "ffn": {"structure": "ffn", "criterion": "taylor"},
    "layers": {"structure": "layers", "criterion": "taylor"},
    "torch.nn.utils.prune": {},
    "sparsegpt, untrained": [0.0],
    "sparsegpt, 1 round": [1.0],
    "sparsegpt, 4 rounds": [0.15, 0.15, 0.2, 0.5],
}

parser = sst2.parser(__doc__, steps=2000, learning_rate=2e-4)
parser.add_argument("--sparsities", nargs="+", default=["0.8", "0.9"], help="fractions, or N:M")
weights = [c for c in CRITERIA if c not in ("ffn", "layers") and "uniform" not in c and "regrowth" not in c]
parser.add_argument("--criteria", nargs="+", default=weights, choices=list(CRITERIA), help="default: of weights")
HOW = [
    "alone", "distilled", "distilled, hidden states too",
    "distilled, with unlabelled text", "distilled, hidden states too, with unlabelled text",
]  # fmt: skip
parser.add_argument("--distil", nargs="+", default=HOW[:2], choices=HOW, help="text needs --unlabeled")
args = parser.parse_args()
tokenizer, data = sst2.load(args)
cache = str(sst2.cached(args, tokenizer, data)) if "distilled" in args.distil else ""
texts = sst2.unlabeled(args, tokenizer)


def run(case, seed):
    """Prune once; with no case score the dense model."""
    model = AutoModelForSequenceClassification.from_pretrained(args.dense)
    model.base_model.embeddings.requires_grad_(False)
    if case == "dense":
        return sst2.score(CompressionTrainer, model, args, seed, tokenizer, data, steps=0)
    sparsity, name, how = case.split(" | ")
    if name == "torch.nn.utils.prune":
        matrices = [(m, "weight") for m in model.base_model.encoder.modules() if isinstance(m, nn.Linear)]
        prune.global_unstructured(matrices, prune.L1Unstructured, amount=float(sparsity))
        return sst2.score(Trainer, model, args, seed, tokenizer, data)
    # What is not in the cache is asked of the dense model itself.
    has_texts, has_states = how.endswith("text"), "hidden" in how
    is_cached = not has_texts and not has_states
    terms = {"temperature": 2.0, "task_weight": 0.1, "logit_weight": 0.9, "hidden_weight": float(has_states)}
    distillation = DistillationConfig(**terms, cache=cache if is_cached else "") if how != "alone" else None
    extra = {} if is_cached else {"teacher": AutoModelForSequenceClassification.from_pretrained(args.dense)}
    extra |= {"unlabeled_dataset": texts} if has_texts else {}
    if isinstance(CRITERIA[name], list):
        return in_rounds(model, sparsity, CRITERIA[name], seed, distillation, extra)
    exclude = () if "structure" in CRITERIA[name] else ("pooler",)
    pruning = PruningConfig(**amount(sparsity), exclude=exclude, **CRITERIA[name])
    extra["compression"] = CompressionConfig(distillation, pruning)
    return sst2.score(CompressionTrainer, model, args, seed, tokenizer, data, **extra)


def amount(sparsity):
    """Return what asks for a fraction of zeros, or for N:M."""
    return {"structure": sparsity} if ":" in sparsity else {"sparsity": float(sparsity)}


def in_rounds(model, sparsity, shares, seed, distillation, extra):
    """Prune without training and train what is left, with a part of all steps in each round."""
    collate = DataCollatorWithPadding(tokenizer)
    rows = data["train"].shuffle(seed=seed).select(range(512)).select_columns(["input_ids", "attention_mask"])
    batches = [dict(collate(list(rows.select(range(i, i + 32))))) for i in range(0, 512, 32)]
    pruning = PruningConfig(criterion="keep", exclude=("pooler",))
    found = 0.0
    for number, share in enumerate(shares, 1):
        goal = amount(sparsity)
        if "sparsity" in goal:
            # The same factor of the weights that are left goes in each round.
            goal = {"sparsity": 1 - (1 - goal["sparsity"]) ** (number / len(shares)), "scope": "sensitivity"}
        model = prune_oneshot(model, OneShotConfig(**goal, refine=20), batches)
        extra["compression"] = CompressionConfig(distillation, pruning)
        steps = round(share * args.steps)
        found = sst2.score(CompressionTrainer, model, args, seed, tokenizer, data, steps=steps, **extra)
        print(f"{goal} after {steps} steps: {found:.4f}", flush=True)
    return found


cases = [f"{s} | {c} | {d}" for s in args.sparsities for c in args.criteria for d in args.distil]
# Torch's knows no teacher and no N:M, which goes in one round.
cases = [c for c in cases if "torch" not in c or c.endswith("alone")]
cases = [c for c in cases if ":" not in c or not ("torch" in c or "4 rounds" in c)]
sst2.table(args, ["dense", *cases], run)
