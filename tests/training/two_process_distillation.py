"""One distillation run of a language model, alone or under torchrun: FOLDER BATCH_SIZE CHUNK_SIZE MODE.

MODE: replicas or fsdp.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch
from two_process import shard_on_cpu

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig

FSDP = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "cpu_ram_efficient_loading": False}


def main(folder: str, batch_size: str, chunk_size: str, mode: str) -> None:
    torch.set_num_threads(1)
    arguments = tiny.arguments(
        folder,
        max_steps=4,
        per_device_train_batch_size=int(batch_size),
        optim="sgd",
        learning_rate=0.1,
        # One process takes every other sample of the order that two processes share.
        train_sampling_strategy="sequential",
        **({"fsdp": True, "fsdp_config": FSDP} if mode == "fsdp" else {}),
    )
    if mode == "fsdp":
        shard_on_cpu(arguments)
    config = DistillationConfig(chunk_size=int(chunk_size), relation_weight=1.0)
    trainer = CompressionTrainer(
        tiny.llama(0),
        arguments,
        compression=CompressionConfig(config),
        teacher=tiny.llama(1),
        unlabeled_dataset=[{"input_ids": row["input_ids"]} for row in tiny.texts(8)],
        train_dataset=tiny.texts(),
    )
    trainer.train()
    whole = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in trainer.model.named_parameters()}
    logs = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history]
    result = {"weights": whole, "logs": logs, "chunked": trainer._loss._chunked is not None}
    torch.save(result, Path(folder) / f"rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
