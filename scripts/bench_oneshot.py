"""Perplexity of a language model on WikiText-2 after one-shot pruning, by criterion and sparsity, and after healing.

    python scripts/bench_oneshot.py --model FOLDER --data WIKITEXT2_FOLDER --output results.json
FOLDER holds a causal language model and its tokenizer, such as `wikitext.py` makes. Calibration rows come from the
training text; perplexity is that of the validation text (choices) and, once, of the test text (`--split test`).
Each finished case is kept in the output, so the script goes on where it was stopped.
"""

import statistics
import time

import torch
import wikitext
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_compress import OneShotConfig, PruningConfig, calibration_batches, prune_oneshot
from hf_compress.measurement.perplexity import perplexity

CRITERIA = {
    "magnitude": {"criterion": "magnitude"},
    "wanda": {"criterion": "wanda"},
    "wanda, whole matrix": {"criterion": "wanda", "compare": "matrix"},
    "ria": {"criterion": "ria"},
    "sparsegpt": {"criterion": "sparsegpt", "refine": 0},
    "sparsegpt, refined": {"criterion": "sparsegpt", "refine": 20},
    "wanda, owl": {"criterion": "wanda", "scope": "owl"},
    "sparsegpt, owl": {"criterion": "sparsegpt", "refine": 0, "scope": "owl"},
    "sparsegpt, sensitivity": {"criterion": "sparsegpt", "refine": 0, "scope": "sensitivity"},
}
parser = wikitext.parser(__doc__, learning_rate=5e-4)
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--amounts", nargs="+", default=["0.5", "0.6", "0.7", "0.8", "2:4"])
parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), choices=list(CRITERIA))
parser.add_argument("--heal", type=int, default=0, help="steps of distillation afterwards, masks fixed")
args = parser.parse_args()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(args.model)
train_text = wikitext.texts(args.data, "train")
held_out = torch.tensor(tokenizer(wikitext.texts(args.data, args.split))["input_ids"])


def score(model):
    """Return the perplexity."""
    return perplexity(model, held_out, length=args.length)["perplexity"]


def run(case, seed):
    """Prune once; with no case score the dense model."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    begin = time.perf_counter()
    if case != "dense":
        amount, name = case.split(" | ")[:2]
        what = {"structure": amount} if ":" in amount else {"sparsity": float(amount)}
        sizes = {"samples": args.samples, "length": args.length, "seed": seed}
        batches = calibration_batches(train_text, tokenizer, **sizes)
        prune_oneshot(model, OneShotConfig(**what, **CRITERIA[name]), batches)
    if case.endswith("healed"):
        wikitext.distil(model, args, tokenizer, train_text, args.heal, seed, PruningConfig(criterion="keep"))
    seconds = time.perf_counter() - begin
    return {"perplexity": round(score(model), 4), "seconds": round(seconds, 1)}


cases = ["dense"] + [
    f"{amount} | {name}" + (f" | {args.heal} steps healed" if args.heal else "")
    for amount in args.amounts
    for name in args.criteria
    # The share of each matrix is fixed by N:M.
    if ":" not in amount or "," not in name or name.endswith("refined")
]
found = wikitext.table(args, cases, run)
dense = found["dense"][str(args.seeds[0])]["perplexity"]
for case, each in found.items():
    mean = statistics.mean(r["perplexity"] for r in each.values())
    print(f"{case:45} {mean:9.3f}  x{mean / dense:.3f}  ({len(each)} draws)")
