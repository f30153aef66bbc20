"""FSDP2 shards are pruned as the whole model is."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SCRIPT = Path(__file__).with_name("sharded.py")
EXPECTED = {
    "unstructured,magnitude,uniform,no": "all equal",
    "unstructured,magnitude,global,no": "all equal",
    "unstructured,platon,global,regrow": "all equal",
    "unstructured,movement,erk,regrow": "all equal",
    "unstructured,random,global,no": "all equal",
    "unstructured,threshold,uniform,no": "all equal",
    "2:4,magnitude,uniform,no": "all equal",
    "rows,taylor,global,no": "all equal",
    "block:1x4,magnitude,uniform,no": "all equal",
    # What shards cannot tell is refused with the reason.
    "columns,magnitude,uniform,no": "units of structure='columns' span rows of a weight",
    "unstructured,lamp,global,no": "criterion='lamp' ranks the entries of a weight among each other",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    tiny.needs_shards()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [SCRIPT, tmp_path_factory.mktemp("shards"), *EXPECTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("spec", EXPECTED)
def test_two_shards_prune_what_one_process_prunes_or_say_why_not(said, spec):
    assert said.count(f"{spec}: {EXPECTED[spec]}") == 2
