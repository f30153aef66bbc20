"""Step time of our Trainers and of two peers against the stock Trainer, in one run, as ratios.

MiniLM, 32 sequences of 32 random tokens, a mask every 10 steps. All contenders take turns in each round; a ratio is
the median over rounds.
"""

import argparse
from pathlib import Path

import torch
from peers_pruning import TorchAoSparsifier, TorchPrune
from step_times import forward_ms, minilm, random_rows, report, step_ms
from transformers import Trainer

from hf_compress import DistillationTrainer, PruningConfig, PruningTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=44, help="the first two and the last are not counted")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--only", nargs="+", help="contenders beside the stock Trainer; by default all")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
torch.set_num_threads(1)
model, teacher, rows = minilm(), minilm().eval(), random_rows(args.steps)
by_magnitude = {"criterion": "magnitude"}
kinds = {"default": {}, "magnitude": by_magnitude, "magnitude, global": {**by_magnitude, "scope": "global"}} | {
    f"{c}, regrow": {"criterion": c, "regrow": True, "scope": "global"} for c in ("movement", "platon")
}
configs = {name: PruningConfig(0.8, begin=0.0, end=1.0, frequency=10, **options) for name, options in kinds.items()}
contenders = {"stock": (Trainer, {}, None), "distillation": (DistillationTrainer, {"teacher": teacher}, None)}
contenders |= {name: (PruningTrainer, {"pruning": config}, None) for name, config in configs.items()}
contenders |= {
    "torch.nn.utils.prune": (Trainer, {}, TorchPrune),
    "torch.ao sparsifier": (Trainer, {}, TorchAoSparsifier),
}
contenders = {name: c for name, c in contenders.items() if name == "stock" or name in (args.only or contenders)}
ms: dict[str, list[float]] = {name: [] for name in [*contenders, "teacher forward"]}
for _ in range(args.rounds):
    for name, contender in contenders.items():
        ms[name].append(step_ms(contender, model, rows, args.steps, args.bf16))
    ms["teacher forward"].append(forward_ms(teacher, rows, args.steps, args.bf16))
bases = dict.fromkeys(ms, ("stock", ms["stock"]))
if "distillation" in ms:
    both = [s + t for s, t in zip(ms["stock"], ms["teacher forward"], strict=True)]
    bases["distillation"] = ("stock + teacher forward", both)
report(ms, bases, {"bf16": args.bf16, "steps": args.steps}, args.output)
