"""Two gloo processes under torchrun agree with each other and with one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_process.py")


@pytest.mark.parametrize("structure", ["unstructured", "ffn"])
def test_two_processes_agree_and_equal_one(tmp_path, structure):
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, folder, batch_size in (([sys.executable], one, "8"), (torchrun, two, "4")):
        command = [*launcher, SCRIPT, folder, batch_size, structure]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (torch.load(p) for p in (one / "rank0.pt", two / "rank0.pt", two / "rank1.pt"))
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert torch.equal(mask, alone["masks"][name])
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        assert torch.allclose(weight, alone["weights"][name], atol=1e-5), name
    for key in ("loss", "grad_norm", "task_loss", "distillation_loss", "sparsity"):
        values = [[e[key] for e in r["logs"] if key in e] for r in (alone, first)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), key
    assert (two / "checkpoint-6" / "pruning_state.safetensors").is_file()
