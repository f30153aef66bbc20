"""Distillation runs of a language model, alone or under torchrun: FOLDER BATCH_SIZE CHUNK_SIZE,MODE...

MODE: replicas, fsdp, or cached: with a cache that the processes make together first. Each run has a folder of its own.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch
from two_process import leave, shard_on_cpu

from hf_compress import CacheConfig, CompressionConfig, CompressionTrainer, DistillationConfig, cache_teacher

FSDP = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "cpu_ram_efficient_loading": False}


def main(output: str, batch_size: str, *whats: str) -> None:
    torch.set_num_threads(1)
    for what in whats:
        trainer = train(f"{output}/{what}", batch_size, *what.split(","))
    leave(trainer)


def train(folder: str, batch_size: str, chunk_size: str, mode: str) -> CompressionTrainer:
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
    rows, unlabeled = tiny.texts(), [{"input_ids": row["input_ids"]} for row in tiny.texts(8, seed=1)]
    config = DistillationConfig(chunk_size=int(chunk_size), relation_weight=1.0)
    if mode == "cached":
        bare = [{k: v for k, v in row.items() if k != "labels"} for row in [*rows, *unlabeled]]
        bare = [{"attention_mask": torch.ones_like(row["input_ids"]), **row} for row in bare]
        cache = cache_teacher(tiny.llama(1), bare, Path(folder) / "cache", CacheConfig(batch_size=4), progress=False)
        config = DistillationConfig(chunk_size=int(chunk_size), cache=str(cache))
    trainer = CompressionTrainer(
        tiny.llama(0),
        arguments,
        compression=CompressionConfig(config),
        teacher=None if mode == "cached" else tiny.llama(1),
        unlabeled_dataset=unlabeled,
        train_dataset=rows,
    )
    trainer.train()
    whole = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in trainer.model.named_parameters()}
    logs = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history]
    result = {"weights": whole, "logs": logs, "chunked": trainer._loss._chunked is not None}
    torch.save(result, Path(folder) / f"rank{trainer.args.process_index}.pt")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
