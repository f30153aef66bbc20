"""Memory of a pruner whose weights FSDP2 shares out over processes, against one process that has them all.

    python scripts/bench_shards.py --case magnitude --output results.json                        # one process
    torchrun --nproc-per-node 2 scripts/bench_shards.py --case magnitude --output results.json   # two, on gloo

What the pruner holds (masks, shadows, running scores) is counted on each process, and how far the process grew over
its steps. Each call adds its row to the output.
"""

import argparse
import json
import os
import resource
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

from hf_compress import PruningConfig
from hf_compress.measurement.environment import environment
from hf_compress.pruning.pruner import Pruner

CASES = {
    "magnitude": {"criterion": "magnitude", "scope": "global"},
    "platon, regrowth": {"criterion": "platon", "scope": "global", "regrow": True},
}


def held(pruner) -> int:
    """Return the bytes of all tensors that hang on a pruner, parameters apart."""
    own, seen, todo = {id(p) for p in pruner.parameters.values()}, {}, [pruner.running, vars(pruner.store)]
    while todo:
        found = todo.pop()
        if isinstance(found, torch.Tensor) and id(found) not in own:
            local = found.to_local() if hasattr(found, "to_local") else found
            seen[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
        elif isinstance(found, dict):
            todo += found.values()
        elif isinstance(found, (list, tuple)):
            todo += found
    return sum(seen.values())


def measure(options, mesh, args) -> dict:
    """Make some masks along a schedule, with made-up gradients; returns bytes."""
    torch.manual_seed(0)
    shape = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "num_hidden_layers": args.layers}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=8, vocab_size=100, **shape))
    if mesh is not None:
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    pruner = Pruner(PruningConfig(0.8, begin=0.0, end=1.0, frequency=1, **options))
    pruner.attach(model)
    pruner.start(args.steps)
    for parameter in pruner.parameters.values():
        parameter.grad = torch.randn_like(parameter)
    before, most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for step in range(1, args.steps + 1):
        pruner.before_step(step)
        pruner.step(step)
        most = max(most, held(pruner))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    weights = sum(p.numel() for p in pruner.parameters.values())
    return {"pruned_weights": weights, "held_bytes": most, "grown_bytes": grown, "sparsity": pruner.sparsity}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--case", choices=list(CASES), required=True)
parser.add_argument("--width", type=int, default=768)
parser.add_argument("--layers", type=int, default=12)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--output", type=Path, required=True)
args = parser.parse_args()
torch.set_num_threads(1)
mesh, world = None, int(os.environ.get("WORLD_SIZE", "1"))
if world > 1:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (world,))
row = measure(CASES[args.case], mesh, args)
rows = [row]
if world > 1:
    rows = [{} for _ in range(world)]
    dist.all_gather_object(rows, row)
    dist.destroy_process_group()
if int(os.environ.get("RANK", "0")) == 0:
    empty = {"environment": environment(), "runs": {}}
    found = json.loads(args.output.read_text()) if args.output.is_file() else empty
    found["runs"][f"{args.case}, {world} processes"] = rows
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    for rank, row in enumerate(rows):
        print(
            f"process {rank} of {world}, {args.case}, {row['pruned_weights']:,} weights: holds "
            f"{row['held_bytes'] / 2**20:.0f} MiB, grew {row['grown_bytes'] / 2**20:.0f} MiB"
        )
