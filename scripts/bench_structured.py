"""Accuracy of MiniLM on SST-2 with fewer neurons, or neurons and heads, by criterion and repair, without training.

    python scripts/bench_structured.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
Units are measured on training sentences (`--samples`), another draw for each seed. With `--steps N` each repaired
model is trained after that, with the dense model as teacher: `--distil` says what of.
"""

import json
import time

import sst2
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_compress import DistillationConfig, DistillationTrainer, OneShotConfig, prune_oneshot

DISTIL = ["logits", "logits and hidden states", "logits, with unlabelled text"]
CRITERIA = ["random", "magnitude", "wanda", "activation", "entropy", "mutual_information", "taylor", "fisher"]
parser = sst2.parser(__doc__, steps=0, learning_rate=1e-4)
parser.add_argument("--distil", nargs="+", default=["logits"], choices=DISTIL, help="text needs --unlabeled")
parser.add_argument("--samples", type=int, default=1024)
parser.add_argument("--rounds", type=int, nargs="+", default=[1, 6])
parser.add_argument("--keep", type=float, nargs="+", default=[0.5])
parser.add_argument("--layouts", nargs="+", default=["uniform", "per_layer"])
parser.add_argument("--criteria", nargs="+", default=CRITERIA)
args = parser.parse_args()
tokenizer, data = sst2.load(args)
collate = DataCollatorWithPadding(tokenizer)
cache = str(sst2.cached(args, tokenizer, data)) if args.steps else ""
texts = sst2.unlabeled(args, tokenizer)


def distil(model, what, seed):
    """Train `model` with the dense one as teacher; what is not in the cache is asked of the dense model itself."""
    terms = {"temperature": 2.0, "task_weight": 0.1, "logit_weight": 0.9, "hidden_weight": float("hidden" in what)}
    if what == "logits":
        extra = {"distillation": DistillationConfig(**terms, cache=cache)}
    else:
        teacher = AutoModelForSequenceClassification.from_pretrained(args.dense)
        extra = {"distillation": DistillationConfig(**terms), "teacher": teacher}
    extra |= {"unlabeled_dataset": texts} if what.endswith("text") else {}
    model.base_model.embeddings.requires_grad_(False)
    sst2.score(DistillationTrainer, model, args, seed, tokenizer, data, **extra)


def run(case, seed):
    """Prune once."""
    model = AutoModelForSequenceClassification.from_pretrained(args.dense)
    if case == "dense":
        return sst2.exact_accuracy(model, data, collate)
    layout, share, criterion, rounds, repair, *how = case.split(" | ")
    begin = time.perf_counter()
    # Heads of BERT go alone in no uniform layout.
    keep = dict.fromkeys(["ffn", "heads"] if layout == "per_layer" else ["ffn"], float(share))
    config = OneShotConfig(
        keep=keep, criterion=criterion, rounds=int(rounds.split()[0]), layout=layout,
        repair=0.01 if repair == "repair" else None,
    )  # fmt: skip
    smaller = prune_oneshot(model, config, sst2.sampled(data, collate, seed, args.samples))
    if how:
        distil(smaller, how[0].removeprefix("distilled: "), seed)
    seconds = time.perf_counter() - begin
    found = sst2.exact_accuracy(smaller, data, collate)
    print(json.dumps({"case": case, "seconds": round(seconds, 1), "accuracy": found}), flush=True)
    return found


trained = [f"repair | distilled: {how}" for how in args.distil]
cases = [
    f"{layout} | {share} | {criterion} | {rounds} rounds | {repair}"
    for layout in args.layouts
    for share in args.keep
    for criterion in args.criteria
    for rounds in args.rounds
    if rounds == 1 or criterion not in ("random", "magnitude")
    for repair in (trained if args.steps else ["no repair", "repair"])
]
sst2.table(args, ["dense", *cases], run)
