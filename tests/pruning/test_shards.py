"""FSDP2 shards are pruned as the whole model is."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded.py")


def torchrun(tmp_path, *specs):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*command, SCRIPT, tmp_path, *specs], capture_output=True, text=True, timeout=400)


def test_two_shards_prune_what_one_process_prunes(tmp_path):
    done = torchrun(
        tmp_path,
        "unstructured,magnitude,uniform,no",
        "unstructured,magnitude,global,no",
        "unstructured,platon,global,regrow",
        "unstructured,movement,erk,regrow",
        "unstructured,random,global,no",
        "unstructured,threshold,uniform,no",
        "2:4,magnitude,uniform,no",
        "rows,taylor,global,no",
        "block:1x4,magnitude,uniform,no",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all equal") == 2


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("columns,magnitude,uniform,no", "units of structure='columns' span rows of a weight"),
        ("unstructured,lamp,global,no", "criterion='lamp' ranks the entries of a weight among each other"),
    ],
)
def test_what_shards_cannot_tell_is_refused_with_the_reason(tmp_path, spec, reason):
    done = torchrun(tmp_path, spec)
    assert done.returncode != 0
    assert f"UnsupportedError: {reason}" in done.stderr
