"""Peak memory and time of pruning a saved model block by block, against the number of its blocks.

    python scripts/bench_oneshot_memory.py --work FOLDER --output results.json
Each model is made once and pruned in a process of its own; memory is the peak over that of the imported libraries.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_compress import OneShotConfig, prune_oneshot
from hf_compress.measurement.environment import environment

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--work", type=Path, required=True, help="folder for the models")
parser.add_argument("--output", type=Path)
parser.add_argument("--blocks", type=int, nargs="+", default=[5, 20])
parser.add_argument("--hidden", type=int, default=1024)
parser.add_argument("--criterion", default="wanda")
parser.add_argument("--one", type=Path, help="prune this model and print what it took")
args = parser.parse_args()


def peak():
    """Return the peak of the resident set, MB."""
    # Not getrusage: what it says begins with the peak of the parent process.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def one():
    """Prune one model."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 8192, (4, 128), generator=generator)} for _ in range(8)]
    place = args.work / "pruned"
    shutil.rmtree(place, ignore_errors=True)
    before, begin = peak(), time.perf_counter()
    prune_oneshot(args.one, OneShotConfig(sparsity=0.5, criterion=args.criterion), batches, place, device="cpu")
    print(json.dumps({"peak_mb": round(peak() - before), "seconds": round(time.perf_counter() - begin, 1)}))


def all_sizes():
    """Prune each model in a process of its own."""
    found = {}
    for blocks in args.blocks:
        place = args.work / f"blocks-{blocks}"
        if not place.exists():
            shape = {"hidden_size": args.hidden, "intermediate_size": args.hidden * 11 // 4}
            heads = {"num_attention_heads": args.hidden // 64, "num_key_value_heads": args.hidden // 256}
            config = LlamaConfig(vocab_size=8192, num_hidden_layers=blocks, tie_word_embeddings=True, **shape, **heads)
            LlamaForCausalLM(config).save_pretrained(place)
        options = ["--work", args.work, "--one", place, "--criterion", args.criterion]
        done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
        size = (place / "model.safetensors").stat().st_size / 2**20
        found[blocks] = {"model_mb": round(size), **json.loads(done.stdout.splitlines()[-1])}
        print(blocks, found[blocks], flush=True)
    if args.output:
        settings = {"hidden": args.hidden, "criterion": args.criterion}
        content = {"settings": settings, "environment": environment(), "blocks": found}
        args.output.write_text(json.dumps(content, indent=2))


one() if args.one else all_sizes()
