"""Quality, bytes, memory, load time and latency of one model in every scheme and runtime, in one run.

    python scripts/bench_quantization.py --model FOLDER --data SST2_FOLDER --output results.json
    python scripts/bench_quantization.py --model FOLDER --data WIKITEXT2_FOLDER --language-model --output results.json
The first is a classifier of sentences, the second a causal language model. Static ranges come from training text.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import sst2
import torch
import wikitext
from transformers import AutoTokenizer, DataCollatorWithPadding

from hf_compress import QuantizationConfig, calibration_batches, export, measure, quantize
from hf_compress.errors import HfCompressError
from hf_compress.measurement.load import load_model, model_class
from hf_compress.measurement.perplexity import perplexity
from hf_compress.report.tables import compare_table

SCHEMES = ["int8", "nf4", "fp4", "torchao-int8", "torchao-int8-dynamic", "torchao-int4"]
RUNTIMES = [(f, q) for f in ("onnx", "openvino") for q in (None, "dynamic", "static")]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("--model", "--data", "--output"):
    parser.add_argument(name, type=Path, required=True)
parser.add_argument("--language-model", action="store_true")
parser.add_argument("--work", type=Path, help="folder for the models; default beside the output; kept")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)
args.work = args.work or args.output.with_suffix(".models")
args.dense, args.held_out = str(args.model), False
tokenizer = AutoTokenizer.from_pretrained(args.model)
if args.language_model:
    held_out = torch.tensor(tokenizer(wikitext.texts(args.data, "validation"))["input_ids"])
    batches = list(calibration_batches(wikitext.texts(args.data, "train"), tokenizer, samples=128, length=256))
else:
    _, data = sst2.load(args)
    collate = DataCollatorWithPadding(tokenizer)
    columns = ("input_ids", "token_type_ids", "attention_mask")
    rows = [{c: r[c] for c in columns} for r in data["train"].shuffle(seed=0).select(range(256))]
    batches = [dict(collate(rows[i : i + 8])) for i in range(0, 256, 8)]
torch.set_num_threads(args.threads)


@torch.inference_mode()
def evaluate(model):
    """Return the perplexity, or the accuracy on the validation sentences."""
    if args.language_model:
        return {"perplexity": perplexity(model, held_out, length=256)["perplexity"]}
    rows, right = sorted(data["test"], key=lambda r: len(r["input_ids"])), 0
    for i in range(0, len(rows), 64):
        batch = collate([{c: r[c] for c in (*columns, "labels")} for r in rows[i : i + 64]])
        right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return {"accuracy": right / len(rows)}


def make(folder, scheme=None, runtime=None):
    """Write one model, unless it is there; returns whether it could be made."""
    try:
        if not folder.exists() and scheme:
            quantize(args.model, folder, QuantizationConfig(scheme))
        elif not folder.exists():
            export(args.model, runtime[0], folder, quantization=runtime[1], batches=batches)
    except HfCompressError as error:
        print(f"{folder.name}: {error}")
    return folder.exists()


models = {"float32": args.model, "bfloat16": args.work / "bfloat16"}
if not models["bfloat16"].exists():
    model_class(args.model).from_pretrained(args.model, dtype=torch.bfloat16).save_pretrained(models["bfloat16"])
models |= {s: args.work / s for s in SCHEMES if make(args.work / s, scheme=s)}
exported = {f"{f}-{q or 'float'}": (f, q) for f, q in RUNTIMES}
models |= {n: args.work / n for n, r in exported.items() if make(args.work / n, runtime=r)}
records = measure(models, evaluate=evaluate, dataset={"id": args.data.name, "split": "validation"}, seconds=3.0)
loads = {}
for name, folder in list(models.items()) * 3:
    begin = time.perf_counter()
    load_model(folder)
    loads.setdefault(name, []).append(time.perf_counter() - begin)
found = {
    "load_seconds": {n: statistics.median(t) for n, t in loads.items()},
    "records": [r.to_dict() for r in records],
}
for record in found["records"]:
    for measurement in record["measurements"]:
        measurement.pop("samples", None)
args.output.write_text(json.dumps(found, indent=1))
print(compare_table(records), found["load_seconds"])
