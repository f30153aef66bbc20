"""A training run that kills itself with SIGKILL: python killable.py OUTPUT TRIGGER MODEL [PRUNING].

TRIGGER: never, step:N (when step N ends), write:N:FILE (while checkpoint-N/FILE is being written), resume (go on), or
resume,step:N (go on and be killed again). PRUNING: options of PruningConfig as JSON.
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

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def die_while_writing(step: str, name: str) -> None:
    """Replace torch.save and the JSON and safetensors writers by ones that write half a file and die."""
    from transformers import TrainerState

    import hf_compress.training.mixin as mixin

    def is_target(path) -> bool:
        return str(path).endswith(f"checkpoint-{step}/{name}")

    def half(path) -> None:
        Path(path).write_bytes(b"PK\x03\x04 half a file")
        die()

    save, to_json, save_state = torch.save, TrainerState.save_to_json, mixin.save_pruning_state
    torch.save = lambda thing, path, *a, **k: half(path) if is_target(path) else save(thing, path, *a, **k)
    TrainerState.save_to_json = lambda self, path: half(path) if is_target(path) else to_json(self, path)

    def state(pruner, folder, **options):
        if is_target(Path(folder) / name):
            half(Path(folder) / (name + ".part"))
        save_state(pruner, folder, **options)

    mixin.save_pruning_state = state


def main(output: str, trigger: str, model: str, pruning: str = '{"sparsity": 0.7}') -> None:
    torch.set_num_threads(1)
    resumes = trigger.startswith("resume")
    kind, *rest = trigger.removeprefix("resume,").split(":")
    callbacks = [DieAtStep(int(rest[0]))] if kind == "step" else []
    if kind == "write":
        die_while_writing(*rest)
    make, rows = {"bert": (tiny.bert, tiny.sentences()), "vit": (tiny.vit, tiny.images())}[model]
    dropout = {"bert": {"dropout": 0.1}, "vit": {"hidden_dropout_prob": 0.1}}[model]
    trainer = CompressionTrainer(
        make(0, **dropout),
        tiny.arguments(output, max_steps=12, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2),
        compression=CompressionConfig(DistillationConfig(), PruningConfig(**{"frequency": 2, **json.loads(pruning)})),
        teacher=make(1),
        train_dataset=rows,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=True if resumes else None)
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
