"""What 4 bits cost a language model on WikiText-2, and what an adapter or rounding in training wins back.

    python scripts/bench_recovery.py --model FOLDER --data WIKITEXT2_FOLDER --output results.json
FOLDER holds a causal language model and its tokenizer, such as `wikitext.py` makes; it is the teacher too.
"""

import tempfile
import time
from pathlib import Path

import torch
import wikitext
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_compress import QuantizationConfig, merge_recovered, quantize, recovery_adapter
from hf_compress.measurement.load import load_model
from hf_compress.measurement.perplexity import perplexity

CASES = [
    "float32", "nf4", "nf4, loftq", "nf4, zero, trained", "nf4, loftq, trained", "int4", "int4, aware, observed",
    "int4, aware, learned",
]  # fmt: skip
parser = wikitext.parser(__doc__, learning_rate=1e-3)
parser.add_argument(
    "--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE", help="an unknown one lists them"
)
parser.add_argument("--steps", type=int, default=250)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--aware-learning-rate", type=float, default=2e-4)
args = parser.parse_args()
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(args.model)
train_text = wikitext.texts(args.data, "train")
held_out = torch.tensor(tokenizer(wikitext.texts(args.data, args.split))["input_ids"])
# One scale for all of an output: with groups of 32 a model of this size loses next to nothing.
INT4 = {"scheme": "torchao-int4", "group_size": None}


def score(model):
    """Return the perplexity."""
    return round(perplexity(model, held_out, length=args.length)["perplexity"], 4)


def adapted(folder, initial, trains, seed):
    """Return perplexities with an adapter on nf4: as it is, and merged into the source and quantized again."""
    quantize(args.model, folder / "nf4", QuantizationConfig("nf4"))
    model = recovery_adapter(folder / "nf4", args.model, rank=args.rank, initial=initial)
    if trains:
        wikitext.distil(model, args, tokenizer, train_text, args.steps, seed)
    found = {"perplexity": score(model.eval())}
    if trains:
        merged = merge_recovered(model, args.model, folder / "merged", initial=initial)
        quantize(merged, folder / "again", QuantizationConfig("nf4"))
        found["merged and quantized again"] = score(load_model(folder / "again"))
    return found


def aware(folder, ranges, seed):
    """Return the perplexity after training with rounded weights, as the quantized folder has it."""
    config = QuantizationConfig(**INT4, aware=True, ranges=ranges)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rate, args.learning_rate = args.learning_rate, args.aware_learning_rate
    wikitext.distil(model, args, tokenizer, train_text, args.steps, seed, quantization=config)
    args.learning_rate = rate
    model.save_pretrained(folder / "model")
    quantize(folder / "model", folder / "int4", QuantizationConfig(**INT4))
    return {"perplexity": score(load_model(folder / "int4")), "in training": score(model.eval())}


def run(case, seed):
    """Measure one way."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if case == "float32":
            found = {"perplexity": score(load_model(args.model))}
        elif case in ("nf4", "int4"):
            config = QuantizationConfig("nf4") if case == "nf4" else QuantizationConfig(**INT4)
            found = {"perplexity": score(load_model(quantize(args.model, folder / "out", config)))}
        elif case.startswith("nf4"):
            found = adapted(folder, case.split(", ")[1], "trained" in case, seed)
        else:
            found = aware(folder, case.split(", ")[2], seed)
    return {**found, "seconds": round(time.perf_counter() - begin, 1)}


wikitext.table(args, args.cases, run)
