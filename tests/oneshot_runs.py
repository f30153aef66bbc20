"""Runs of their own: one that kills itself once a number of blocks is done, and one of two processes."""

import os
import signal
import sys

import torch

from hf_compress import OneShotConfig, prune_oneshot
from hf_compress.pruning.oneshot import api


def rows(number=12, length=10, vocabulary=60):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, vocabulary, (number, length), generator=generator)


def killed(source, output, after):
    """Prune from folder to folder; die after some blocks."""

    def say(position, blocks, block):
        if position + 1 == int(after):
            os.kill(os.getpid(), signal.SIGKILL)

    api._say = say
    batches = [{"input_ids": part} for part in rows().split(4)]
    prune_oneshot(source, OneShotConfig(sparsity=0.5), batches, output, device="cpu")


def shared(source, output):
    """Each process sees its part of the calibration data."""
    from transformers import AutoModelForCausalLM

    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = AutoModelForCausalLM.from_pretrained(source)
    batches = [{"input_ids": part} for part in rows().split(3)][rank::size]
    config = OneShotConfig(sparsity=0.5, scope="owl", refine=0)
    # The first process alone writes, whatever the others do meanwhile.
    prune_oneshot(source, config, batches, f"{output}-folder", device="cpu")
    prune_oneshot(model, config, batches)
    torch.save(model.state_dict(), f"{output}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    {"killed": killed, "shared": shared}[sys.argv[1]](*sys.argv[2:])
