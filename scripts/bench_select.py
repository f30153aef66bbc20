"""Exact selection over many scores against torch.kthvalue and torch.sort, in one run: time and extra memory.

Each contender finds the k-th smallest score; ours also marks what stays, which is timed apart. Processor time of one
thread, medians; extra memory is the peak of the process over what it held before, each in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path

import torch

from hf_compress.measurement.environment import environment
from hf_compress.pruning.select import find_threshold, keep_largest

CONTENDERS = {
    "radix threshold": lambda scores, k: find_threshold([scores], k).value,
    "radix threshold and mask": lambda scores, k: keep_largest([scores], k),
    "torch.kthvalue": lambda scores, k: torch.kthvalue(scores, k).values,
    "torch.sort": lambda scores, k: torch.sort(scores).values[k - 1],
}


def once(name: str, count: int, sparsity: float, seed: int, answers) -> None:
    """Put (seconds, extra bytes, threshold) of one contender into `answers`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    scores = torch.randn(count).abs_()
    CONTENDERS[name](scores[:1000], 10)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = CONTENDERS[name](scores, round(sparsity * count))
    seconds = time.process_time() - started
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    answers.put((seconds, extra, None if isinstance(found, list) else float(found)))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--count", type=int, default=100_000_000)
parser.add_argument("--sparsity", type=float, default=0.8)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--output", type=Path)
args = parser.parse_args()
context = multiprocessing.get_context("spawn")
runs: dict[str, list] = {name: [] for name in CONTENDERS}
if __name__ == "__main__":
    for seed in range(args.rounds):
        for name, found in runs.items():
            answers = context.Queue()
            process = context.Process(target=once, args=(name, args.count, args.sparsity, seed, answers))
            process.start()
            found.append(answers.get())
            process.join()
        thresholds = {run[seed][2] for name, run in runs.items() if run[seed][2] is not None}
        if len(thresholds) != 1:
            raise SystemExit(f"the contenders disagree: {thresholds}")
    seconds = {name: statistics.median(s for s, _, _ in found) for name, found in runs.items()}
    extra = {name: statistics.median(b for _, b, _ in found) for name, found in runs.items()}
    for name in runs:
        ratio = seconds[name] / seconds["torch.kthvalue"]
        print(f"{name:26} {seconds[name]:7.2f} s  x{ratio:5.2f} of kthvalue  {extra[name] / 2**20:7.0f} MiB extra")
    if args.output:
        result = {"count": args.count, "sparsity": args.sparsity, "seconds": seconds, "extra_bytes": extra}
        args.output.write_text(json.dumps({**result, "environment": environment()}, indent=2))
