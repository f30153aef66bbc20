"""MiniLM on SST-2 with everything at once: fewer tokens, heads and neurons, distilled, in 8 bit, for one runtime.

    python scripts/bench_joint.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
The dense model is what dense_sst2.py makes. With `--card FOLDER` card, records and pictures of the first seed go
there, and the accuracy of all into seeds.json. With `--unlabeled FOLDER` it learns from other text too. The vocabulary
is that of the training sentences, or with `--whole-vocabulary` as it was; with `--steps 0` nothing is trained. Scored
are the validation sentences; all are timed in turn. Models are kept: run again, it only measures, and with
`--train-only` it leaves that to a quieter time.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import sst2
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_compress import (
    DistillationConfig,
    DistillationTrainer,
    OneShotConfig,
    export,
    measure,
    prune_oneshot,
    shrink_vocabulary,
)
from hf_compress.architecture.modes import outside_training
from hf_compress.hub.card import create_card
from hf_compress.hub.config import CardInfo
from hf_compress.report.compare import compare
from hf_compress.report.tables import is_quality

# As many as recipes calibrate on.
SAMPLES = 1024

parser = sst2.parser(__doc__, steps=1500, learning_rate=1e-4)
parser.add_argument("--keep", type=float, default=0.4)
parser.add_argument("--work", type=Path, help="folder for the models; default beside the output; kept")
parser.add_argument("--hidden-weight", type=float, default=1.0, help="of hidden states beside logits")
parser.add_argument("--card", type=Path, help="folder for the card")
parser.add_argument("--whole-vocabulary", action="store_true", help="keep all tokens")
parser.add_argument("--train-only", action="store_true", help="measure another time")
args = parser.parse_args()
work = args.work or args.output.with_suffix(".models")
tokenizer, data = sst2.load(args)
dense = AutoModelForSequenceClassification.from_pretrained(args.dense)
if args.whole_vocabulary:
    smaller = SimpleNamespace(model=dense, tokenizer=tokenizer)
else:
    smaller = shrink_vocabulary(dense, tokenizer, data["train"]["sentence"])
columns = ["input_ids", "token_type_ids", "attention_mask", "labels"]


def encode(rows, tokenizer):
    """Return rows of tokens in another vocabulary."""
    return rows.map(lambda r: dict(tokenizer(r["sentence"], truncation=True, max_length=128)))


fewer = {name: encode(rows, smaller.tokenizer) for name, rows in data.items()}
collate = DataCollatorWithPadding(smaller.tokenizer)


def batches(seed, count, size=32):
    """Return some training sentences."""
    rows = fewer["train"].shuffle(seed=seed).select(range(count))
    rows = sorted(({c: r[c] for c in columns} for r in rows), key=lambda r: len(r["input_ids"]))
    return [dict(collate(rows[i : i + size])) for i in range(0, count, size)]


@torch.inference_mode()
def evaluate(model):
    """Return the accuracy; a model with fewer tokens reads its own."""
    small = model.config.vocab_size == len(smaller.tokenizer)
    chosen, rows = (collate, fewer["test"]) if small else (DataCollatorWithPadding(tokenizer), data["test"])
    rows, right = sorted(({c: r[c] for c in columns} for r in rows), key=lambda r: len(r["input_ids"])), 0
    for i in range(0, len(rows), 64):
        batch = chosen(rows[i : i + 64])
        right += int((model(**batch).logits.argmax(-1) == batch.pop("labels")).sum())
    return {"accuracy": right / len(rows)}


found = json.loads(args.output.read_text()) if args.output.is_file() else {"accuracy": {}}
settings = ("keep", "steps", "batch_size", "learning_rate", "hidden_weight", "whole_vocabulary")
wanted = {name: getattr(args, name) for name in settings}
if found.setdefault("settings", wanted) != wanted:
    parser.error(f"the models of {args.output} were made with {found['settings']}, and a card says what made them")
folders = {"dense": Path(args.dense), "dense-int8": work / "int8"}
if not folders["dense-int8"].exists():
    rows = [{c: r[c] for c in columns} for r in data["train"].shuffle(seed=0).select(range(SAMPLES))]
    rows, plain = sorted(rows, key=lambda r: len(r["input_ids"])), DataCollatorWithPadding(tokenizer)
    samples = [dict(plain(rows[i : i + 8])) for i in range(0, SAMPLES, 8)]
    export(args.dense, "openvino", work / "int8", quantization="static", batches=samples)
cut = {"ffn": args.keep, "heads": args.keep}
config = OneShotConfig(keep=cut, criterion="fisher", rounds=6, layout="per_layer")
weights = {"task_weight": 0.1, "logit_weight": 0.9, "hidden_weight": args.hidden_weight}
terms = DistillationConfig(**weights)
for seed in args.seeds:
    if str(seed) in found["accuracy"]:
        continue
    model = prune_oneshot(smaller.model, config, batches(seed, SAMPLES))
    steps = {"cut": evaluate(model.eval())["accuracy"]}
    learnt_from = {"teacher": smaller.model, "unlabeled_dataset": sst2.unlabeled(args, smaller.tokenizer)}
    sst2.score(DistillationTrainer, model, args, seed, smaller.tokenizer, fewer, distillation=terms, **learnt_from)
    with outside_training(model):
        steps["distilled"] = evaluate(model)["accuracy"]
    place = work / f"seed{seed}"
    export(model, "openvino", place, quantization="static", batches=batches(seed, SAMPLES, 8))
    parameters = sum(p.numel() for p in model.parameters())
    found["accuracy"][str(seed)] = {**steps, "parameters": parameters}
    args.output.write_text(json.dumps(found, indent=1))
if args.train_only:
    raise SystemExit
small = {seed: "small" if seed == args.seeds[0] else f"small-seed{seed}" for seed in args.seeds}
folders |= {name: work / f"seed{seed}" for seed, name in small.items()}
torch.set_num_threads(len(os.sched_getaffinity(0)))
done = {} if args.whole_vocabulary else {"shrink": {"vocabulary": smaller.model.config.vocab_size}}
done["oneshot"] = {**config.to_dict(defaults=False), "samples": SAMPLES}
if args.steps:
    done["training"] = {k: found["settings"][k] for k in ("steps", "batch_size", "learning_rate")}
    done["compression"] = {"distillation": terms.to_dict(defaults=False)}
done["export"] = {"format": "openvino", "quantization": "static"}
options = {"keep": args.keep, "steps": args.steps, "learning-rate": args.learning_rate}
options["hidden-weight"] = args.hidden_weight
flags = [f"--{name} {value}" for name, value in options.items()] + ["--whole-vocabulary"] * args.whole_vocabulary
where = "--data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json"
command = " ".join([f"python scripts/{Path(sys.argv[0]).name}", where, *flags])
records = measure(
    folders,
    evaluate=evaluate,
    dataset={"id": "sst2", "split": "validation", "samples": len(data["test"])},
    seed=args.seeds[0],
    command=command,
    methods=dict.fromkeys(small.values(), done),
    output_dir=args.card and args.card / "records",
    result="small",
    seconds=3.0,
)
found["records"] = [r.to_dict() for r in records]
args.output.write_text(json.dumps(found, indent=1))
print(compare(records, args.card))
if args.card:
    (args.card / "comparison.html").unlink()
    scores = {r.model: {m.name: m.value for m in r.measurements if is_quality(m.name)} for r in records}
    seeds = {str(seed): {"small": scores[name]} for seed, name in small.items()}
    (args.card / "seeds.json").write_text(json.dumps(seeds, indent=1) + "\n", encoding="utf-8")
    facts = {"base_model": "sentence-transformers/all-MiniLM-L6-v2", "license": "apache-2.0", "language": ("en",)}
    words = "" if args.whole_vocabulary else "; of other words than those of its training data it reads pieces"
    limits = (
        f"Made for sentences of films' reviews{words}.",
        "Layers differ in width, so OpenVINO runs it and transformers' own classes do not.",
    )
    info = CardInfo(args.card.name, datasets=("stanfordnlp/sst2",), limits=limits, **facts)
    create_card(args.card, records, info=info, pictures=sorted(args.card.glob("*.png"), reverse=True))
