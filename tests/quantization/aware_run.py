"""Quantization-aware training that may kill itself: aware_run.py OUTPUT OPTIONS [step:N | resume | batch:N].

OPTIONS: of QuantizationConfig, as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch
from transformers import TrainerCallback

from hf_compress import CompressionConfig, CompressionTrainer, QuantizationConfig


class DieAtStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(output, options, trigger=""):
    torch.set_num_threads(1)
    kind, _, number = trigger.partition(":")
    arguments = tiny.arguments(
        output,
        max_steps=4 if kind == "batch" else 10,
        per_device_train_batch_size=int(number) if kind == "batch" else 8,
        optim="sgd" if kind == "batch" else "adamw_torch",
        learning_rate=0.1 if kind == "batch" else 1e-3,
        save_strategy="steps",
        save_steps=4,
        train_sampling_strategy="sequential" if kind == "batch" else "random",
    )
    trainer = CompressionTrainer(
        tiny.bert(hidden_size=64, intermediate_size=128, dropout=0.0 if kind == "batch" else 0.1),
        arguments,
        compression=CompressionConfig(quantization=QuantizationConfig("int8", aware=True, **json.loads(options))),
        train_dataset=tiny.sentences(),
    )
    if kind == "step":
        trainer.add_callback(DieAtStep(int(number)))
    trainer.train(resume_from_checkpoint=kind == "resume")
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
