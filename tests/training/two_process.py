"""One training run, alone or under torchrun: two_process.py OUTPUT BATCH_SIZE STRUCTURE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig


def main(output: str, batch_size: str, structure: str) -> None:
    torch.set_num_threads(1)
    make, rows = (tiny.bert, tiny.sentences()) if structure == "ffn" else (tiny.bert_tokens, tiny.tagged())
    trainer = CompressionTrainer(
        make(0),
        tiny.arguments(
            output,
            max_steps=6,
            per_device_train_batch_size=int(batch_size),
            optim="sgd",
            learning_rate=0.1,
            save_strategy="steps",
            save_steps=3,
            # One process takes every other sample of the order that two processes share.
            train_sampling_strategy="sequential",
        ),
        compression=CompressionConfig(DistillationConfig(), PruningConfig(0.6, structure, frequency=2)),
        teacher=make(1),
        train_dataset=rows,
    )
    trainer.train()
    logs = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history]
    result = {"weights": trainer.model.state_dict(), "masks": dict(trainer.pruner.masks), "logs": logs}
    torch.save(result, Path(output) / f"rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
