"""Perplexity of a language model on WikiText-2 with fewer neurons, heads, layers or channels: cut, repaired, healed.

    python scripts/bench_structured_lm.py --model FOLDER --data WIKITEXT2_FOLDER --output results.json
FOLDER holds a causal language model and its tokenizer, such as `wikitext.py` makes. Units are measured on rows of the
training text; perplexity is that of the validation text. Finished cases are kept in the output.
"""

import time

import torch
import wikitext
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_compress import OneShotConfig, calibration_batches, prune_oneshot
from hf_compress.measurement.perplexity import perplexity

parser = wikitext.parser(__doc__, learning_rate=1e-3)
parser.add_argument("--samples", type=int, default=64)
parser.add_argument("--units", nargs="+", default=["ffn", "heads", "layers", "hidden"])
parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5])
parser.add_argument("--criterion", default="fisher")
parser.add_argument("--distil", type=int, nargs="+", default=[0], help="steps of distillation afterwards")
args = parser.parse_args()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(args.model)
train_text = wikitext.texts(args.data, "train")
held_out = torch.tensor(tokenizer(wikitext.texts(args.data, args.split))["input_ids"])


def run(case, seed):
    """Cut once; with no case score the dense model."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    begin = time.perf_counter()
    if case != "dense":
        unit, share, how = case.split(" | ")
        sizes = {"samples": args.samples, "length": args.length, "seed": seed, "batch_size": 1}
        batches = [{**b, "labels": b["input_ids"]} for b in calibration_batches(train_text, tokenizer, **sizes)]
        repair = None if how == "cut" else 0.01
        config = OneShotConfig(keep={unit: float(share)}, criterion=args.criterion, repair=repair)
        model = prune_oneshot(model, config, batches)
        if how.startswith("distilled"):
            wikitext.distil(model, args, tokenizer, train_text, int(how.split()[1]), seed)
    seconds = round(time.perf_counter() - begin, 1)
    found = perplexity(model, held_out, length=args.length)["perplexity"]
    parameters = sum(p.numel() for p in model.parameters())
    return {"perplexity": round(found, 4), "parameters": parameters, "seconds": seconds}


steps = [f"distilled {n} steps" for n in args.distil if n]
cases = [f"{u} | {k} | {how}" for u in args.units for k in args.keep for how in ["cut", "repaired", *steps]]
# Nothing reads layers and channels alone, so there is nothing to repair.
cases = [case for case in cases if not (case.endswith("repaired") and case.split()[0] in ("layers", "hidden"))]
found = wikitext.table(args, ["dense", *cases], run)
dense = found["dense"][str(args.seeds[0])]["perplexity"]
for case, each in found.items():
    for values in each.values():
        print(f"{case:40} {values['perplexity']:9.3f}  x{values['perplexity'] / dense:.3f}  {values['parameters']:,}")
