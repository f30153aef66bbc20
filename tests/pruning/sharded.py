"""Prune one model whole and cut over two processes by FSDP2, and compare: torchrun sharded.py OUTPUT SPEC...

SPEC: STRUCTURE,CRITERION,SCOPE,regrow or no. What is refused is printed with its reason.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_compress.errors import UnsupportedError
from hf_compress.pruning.checkpoint import load_pruning_state, save_pruning_state, state_dict
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner
from hf_compress.pruning.stores import check_zeros

STEPS = 6


def train(model, config, batches, stop=STEPS):
    pruner = Pruner(config)
    pruner.attach(model)
    pruner.start(STEPS)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step, batch in enumerate(batches[:stop], 1):
        adam.zero_grad()
        model(**batch).loss.backward()
        pruner.before_step(step)
        adam.step()
        pruner.step(step, adam)
        pruner.check()
    return pruner


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cut(model, mesh):
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compare(mesh, batches, options, folder):
    """Both see the same batches on each process, so their gradients agree up to rounding."""
    config = PruningConfig(**{"begin": 0.2, "end": 1.0, "frequency": 2, **options})
    # 15 neurons do not divide evenly.
    one, two = tiny.bert(intermediate_size=15), cut(tiny.bert(intermediate_size=15), mesh)
    alone, sharded = train(one, config, batches), train(two, config, batches)
    assert alone.pruned == sharded.pruned, options
    assert sum(alone.pruned.values())
    masks = sharded.masks
    for name, mask in alone.masks.items():
        assert torch.equal(mask, masks[name]), (options, name)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, whole(b), atol=1e-5, rtol=1e-4, msg=name)
    check_zeros(masks, {n: whole(p).detach() for n, p in two.named_parameters()})
    # What is saved is the whole, and is read back into parts, also half-way.
    halfway = cut(tiny.bert(intermediate_size=15), mesh)
    half = train(halfway, config, batches, stop=3)
    state = state_dict(half)
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    save_pruning_state(half, folder, write=dist.get_rank() == 0)
    dist.barrier()
    again = Pruner(config)
    fresh = cut(tiny.bert(intermediate_size=15), mesh)
    # Masks fit the weights of their own moment only.
    for parameter, trained in zip(fresh.parameters(), halfway.parameters(), strict=True):
        parameter.detach().copy_(trained)
    again.attach(fresh)
    again.start(STEPS)
    load_pruning_state(again, folder)
    again_state = state_dict(again)
    assert state.keys() == again_state.keys()
    assert all(torch.equal(t, again_state[n]) for n, t in state.items())


def main(output: str, *specs: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    rows = tiny.sentences()
    batches = [{k: torch.stack([r[k] for r in rows[i * 8 : i * 8 + 8]]) for k in rows[0]} for i in range(STEPS)]
    for spec in specs:
        structure, criterion, scope, regrow = spec.split(",")
        options = {"structure": structure, "criterion": criterion, "scope": scope, "regrow": regrow == "regrow"}
        if criterion not in ("threshold", "soft_movement", "keep") and structure != "2:4":
            options["sparsity"] = 0.6
        if structure in ("2:4", "block:1x4"):
            # Its 15 inputs cannot be grouped.
            options["exclude"] = (r"layer.\d.output",)
        try:
            compare(mesh, batches, options, Path(output) / spec.replace(",", "-").replace(":", "_"))
        except UnsupportedError as error:
            print(f"{spec}: {error}")
        else:
            print(f"{spec}: all equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
