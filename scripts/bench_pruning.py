"""Accuracy of pruned MiniLM on SST-2 by criterion, sparsity and seed, at equal budgets, with and without distillation.

    python scripts/bench_pruning.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
The dense model is fine-tuned beforehand, say with train_text_classification.py; its embeddings are frozen. Each
finished run is kept in the output, so the script goes on where it was stopped.
"""

import sst2
from transformers import AutoModelForSequenceClassification

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig

CRITERIA = {
    "magnitude, one-shot": {"schedule": "constant", "begin": 0.0, "end": 0.0},
    "magnitude": {"scope": "global"},
    # As in its paper, in each weight apart: sums of gradients of different layers do not compare.
    "movement": {"criterion": "movement", "scope": "uniform", "regrow": True},
    "platon": {"criterion": "platon", "scope": "global", "regrow": True},
}

parser = sst2.parser(__doc__, steps=2000, learning_rate=2e-4)
parser.add_argument("--sparsities", nargs="+", default=["0.8", "0.9"])
parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=list(CRITERIA))
HOW = ["alone", "distilled", "distilled, with unlabelled text"]
parser.add_argument("--distil", nargs="+", default=HOW[:2], choices=HOW, help="the last needs --unlabeled")
args = parser.parse_args()
tokenizer, data = sst2.load(args)
cache = str(sst2.cached(args, tokenizer, data))
texts = sst2.unlabeled(args, tokenizer)


def run(case, seed):
    """Prune once; with no case score the dense model."""
    model = AutoModelForSequenceClassification.from_pretrained(args.dense)
    model.base_model.embeddings.requires_grad_(False)
    if case == "dense":
        return sst2.score(CompressionTrainer, model, args, seed, tokenizer, data, trains=False)
    sparsity, name, how = case.split(" | ")
    # What is not in the cache is asked of the dense model itself.
    has_texts = how.endswith("text")
    terms = {"temperature": 2.0, "task_weight": 0.1, "logit_weight": 0.9, "cache": "" if has_texts else cache}
    distillation = DistillationConfig(**terms) if how != "alone" else None
    extra = {}
    if has_texts:
        dense = AutoModelForSequenceClassification.from_pretrained(args.dense)
        extra = {"teacher": dense, "unlabeled_dataset": texts}
    pruning = PruningConfig(float(sparsity), exclude=("pooler",), **CRITERIA[name])
    extra["compression"] = CompressionConfig(distillation, pruning)
    return sst2.score(CompressionTrainer, model, args, seed, tokenizer, data, **extra)


cases = [f"{s} | {c} | {d}" for s in args.sparsities for c in args.criteria for d in args.distil]
sst2.table(args, ["dense", *cases], run)
