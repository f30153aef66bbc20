"""Step time of distillation, with the teacher and with its cache, against the stock Trainer, in one run, as ratios.

Teacher MiniLM with 6 layers, student its layers 1, 3 and 6, 32 sequences of 32 random tokens. All contenders take
turns in each round; a ratio is the median over rounds.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from step_times import forward_ms, minilm, random_rows, report, step_ms
from transformers import Trainer

from hf_compress import DistillationConfig, DistillationTrainer, cache_teacher, make_student

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=44, help="the first two and the last are not counted")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
torch.set_num_threads(1)
teacher, rows = minilm().eval(), random_rows(args.steps)
student = make_student(teacher, layers=3)
with tempfile.TemporaryDirectory() as folder:
    cache = cache_teacher(teacher, rows, Path(folder) / "cache", progress=False)
    kinds = {
        "logits": ({}, teacher),
        "logits, cached": ({"cache": str(cache)}, None),
        "+ hidden states": ({"hidden_weight": 1.0}, teacher),
        "+ relations": ({"relation_weight": 1.0}, teacher),
    }
    contenders = {"student alone": (Trainer, {}, None)}
    for name, (options, given) in kinds.items():
        extra = {"distillation": DistillationConfig(**options), "teacher": given}
        contenders[name] = (DistillationTrainer, extra, None)
    ms: dict[str, list[float]] = {name: [] for name in [*contenders, "teacher forward"]}
    for _ in range(args.rounds):
        for name, contender in contenders.items():
            ms[name].append(step_ms(contender, student, rows, args.steps, args.bf16))
        ms["teacher forward"].append(forward_ms(teacher, rows, args.steps, args.bf16))
both = [s + t for s, t in zip(ms["student alone"], ms["teacher forward"], strict=True)]
bases = dict.fromkeys(ms, ("student alone + teacher forward", both))
for name in ("student alone", "logits, cached", "teacher forward"):
    bases[name] = ("student alone", ms["student alone"])
report(ms, bases, {"bf16": args.bf16, "steps": args.steps}, args.output)
