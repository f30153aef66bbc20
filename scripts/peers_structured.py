"""Heads and neurons of MiniLM removed without training, on SST-2, beside Torch-Pruning (`pip install torch-pruning`).

    python scripts/peers_structured.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
Both measure on the same training sentences, another draw for each seed, and leave the same share of all heads and
neurons, ranked over all layers (Torch-Pruning: `global_pruning` and `isomorphic`, so that heads and neurons do not
compete), in six steps. What is left of the encoder's weights is printed and checked.
"""

import argparse
import json
from pathlib import Path

import sst2
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_compress import OneShotConfig, prune_oneshot

STEPS = 6
TOOLS = [
    "torch-pruning, magnitude",
    "torch-pruning, taylor",
    "hf_compress, fisher, no repair",
    "hf_compress, fisher",
]


def torch_pruning(model, criterion, keep, batches):
    """Remove heads and neurons as Torch-Pruning's examples do."""
    import torch_pruning as tp

    importance = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[criterion]()
    layers = model.bert.encoder.layer
    heads = {
        m: part.num_attention_heads
        for part in (layer.attention.self for layer in layers)
        for m in (part.query, part.key, part.value)
    }
    cut = {id(layer.intermediate.dense) for layer in layers} | {id(m) for m in heads}
    ignored = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and id(m) not in cut]
    example = {"input_ids": batches[0]["input_ids"][:2], "attention_mask": batches[0]["attention_mask"][:2]}
    pruner = tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=1 - keep, head_pruning_ratio=1 - keep,
        ignored_layers=[*ignored, model.bert.embeddings], num_heads=heads, prune_num_heads=True,
        prune_head_dims=False, global_pruning=True, isomorphic=True, iterative_steps=STEPS,
        root_module_types=[torch.nn.Linear], output_transform=lambda found: found.logits.sum(),
    )  # fmt: skip
    for _ in range(STEPS):
        model.zero_grad()
        for batch in batches if criterion != "magnitude" else ():
            model(**batch).loss.backward()
        pruner.step()
        for layer in layers:
            part = layer.attention.self
            part.num_attention_heads = pruner.num_heads[part.query]
            part.all_head_size = part.query.out_features
    return model


def encoder_weights(model):
    """Return how many weights the matrices of the encoder's layers have."""
    return sum(p.numel() for p in model.bert.encoder.parameters() if p.ndim == 2)


def run(case, seed):
    """Prune once."""
    model = AutoModelForSequenceClassification.from_pretrained(args.dense, attn_implementation="eager").eval()
    if case == "dense":
        return sst2.exact_accuracy(model, data, collate)
    share, tool = case.split(" | ")
    keep, before = float(share), encoder_weights(model)
    batches = sst2.sampled(data, collate, seed, args.samples)
    if tool.startswith("torch-pruning"):
        smaller = torch_pruning(model, tool.split(", ")[1], keep, batches)
    else:
        repair = None if tool.endswith("no repair") else OneShotConfig.repair
        config = OneShotConfig(keep={"ffn": keep, "heads": keep}, rounds=STEPS, layout="per_layer", repair=repair)
        smaller = prune_oneshot(model, config, batches)
    found = sst2.exact_accuracy(smaller, data, collate)
    left = encoder_weights(smaller) / before
    print(json.dumps({"case": case, "seed": seed, "weights left": round(left, 4), "accuracy": found}), flush=True)
    if abs(left - keep) > 0.03:
        raise SystemExit(f"{case}: {left:.3f} of the encoder's weights are left, which is not {keep}")
    return found


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and validation.parquet")
parser.add_argument("--dense", required=True, help="folder of the fine-tuned model, as dense_sst2.py makes it")
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--held-out", action="store_true", help="score on training data put aside, for choices")
parser.add_argument("--samples", type=int, default=1024)
parser.add_argument("--keep", nargs="+", default=["0.5", "0.333"])
parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
args = parser.parse_args()
tokenizer, data = sst2.load(args)
collate = DataCollatorWithPadding(tokenizer)
sst2.table(args, ["dense", *(f"{keep} | {tool}" for keep in args.keep for tool in args.tools)], run)
