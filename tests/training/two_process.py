"""Training runs one after another, alone or under torchrun: two_process.py OUTPUT BATCH_SIZE WHAT[/MODE]...

WHAT: STRUCTURE,CRITERION[,regrow or frozen], frozen but for what is pruned. MODE: alone, fsdp or resume; without one
there is a teacher too. Each WHAT has a folder of its own in OUTPUT.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig

FSDP = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"], "cpu_ram_efficient_loading": False}


def shard_on_cpu(arguments) -> None:
    """Let accelerate take gloo processes for accelerators, since it ignores FSDP on CPUs."""
    from accelerate.state import DistributedType, PartialState

    assert arguments.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main(output: str, batch_size: str, *whats: str) -> None:
    torch.set_num_threads(1)
    for each in whats:
        what, _, mode = each.partition("/")
        trainer = train(f"{output}/{what}", batch_size, what, mode)
    leave(trainer)


def train(output: str, batch_size: str, what: str, mode: str) -> CompressionTrainer:
    structure, criterion, *more = what.split(",")
    make, rows = (tiny.bert, tiny.sentences()) if structure in ("ffn", "hidden") else (tiny.bert_tokens, tiny.tagged())
    options = {"criterion": criterion, "regrow": "regrow" in more, "frequency": 2}
    is_sharded = mode in ("fsdp", "resume")
    distils = not mode
    arguments = tiny.arguments(
        output,
        max_steps=6,
        per_device_train_batch_size=int(batch_size),
        # Adam turns rounding into steps where gradients are tiny; but FSDP cannot resume an optimizer without state.
        optim="adamw_torch" if mode else "sgd",
        learning_rate=1e-3 if mode else 0.1,
        save_strategy="steps",
        save_steps=3,
        # One process takes every other sample of the order that two processes share.
        train_sampling_strategy="sequential",
        **({"fsdp": True, "fsdp_config": FSDP} if is_sharded else {}),
    )
    if is_sharded:
        shard_on_cpu(arguments)
    model = make(0)
    if "frozen" in more:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layer." in name and parameter.ndim == 2)
    trainer = CompressionTrainer(
        model,
        arguments,
        compression=CompressionConfig(
            DistillationConfig() if distils else None,
            PruningConfig({"2:4": None, "hidden": 0.5}.get(structure, 0.6), structure, **options),
        ),
        teacher=make(1) if distils else None,
        unlabeled_dataset=[{k: v for k, v in row.items() if k != "labels"} for row in rows] if distils else None,
        train_dataset=rows,
    )
    trainer.train(resume_from_checkpoint=f"{output}/checkpoint-3" if mode == "resume" else None)
    trainer.save_model(f"{output}/final{mode}")
    if mode == "fsdp":
        trainer.save_compressed(f"{output}/compressed")
    logs = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trainer.state.log_history]
    weights = {} if is_sharded else trainer.model.state_dict()
    result = {"weights": weights, "masks": dict(trainer.pruner.masks), "logs": logs, "sharded": is_dtensor(trainer)}
    torch.save(result, Path(output) / f"rank{trainer.args.process_index}{mode}.pt")
    return trainer


def leave(trainer) -> None:
    """End without the interpreter's clean-up, in which threads of gloo abort now and then (pytorch/pytorch#179291)."""
    trainer.accelerator.wait_for_everyone()
    os._exit(0)


def is_dtensor(trainer) -> bool:
    return all(hasattr(p, "full_tensor") for p in trainer.model.parameters())


if __name__ == "__main__":
    main(*sys.argv[1:])
