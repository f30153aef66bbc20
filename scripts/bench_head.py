"""Time and memory of a language-model head with cross-entropy and KL, forward and backward, whole and in chunks.

    python scripts/bench_head.py --tokens 2048 --width 384 --vocabulary 50257 --output results.json
Each contender runs in a fresh process, in turn; memory is the peak beside the inputs, time the median.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peers_head import PEERS, resident

from hf_compress.distillation.chunked import by_autograd, chunked_head_loss, rows_at_a_time
from hf_compress.distillation.formula import TermWeights, cross_entropy_and_kl
from hf_compress.distillation.losses import DIVERGENCES
from hf_compress.measurement.environment import environment


def chunked(hidden, weight, teacher, teacher_weight, labels, divergence="forward_kl"):
    """Return 0.5 cross-entropy + 0.5 divergence, in chunks."""

    def by_formula(logits, rows):
        theirs = [(1.0, teacher[rows] @ teacher_weight.T)]
        return cross_entropy_and_kl(logits, labels[rows], theirs, TermWeights(0.5, 0.5, 1.0))

    def by_definition(logits, rows):
        pull, _ = DIVERGENCES.get(divergence)(logits, teacher[rows] @ teacher_weight.T)
        loss = 0.5 * F.cross_entropy(logits, labels[rows], reduction="sum") + 0.5 * pull
        return loss, loss.detach()

    loss_of = by_formula if divergence == "forward_kl" else by_autograd(by_definition)
    chunk = rows_at_a_time(len(weight), hidden.device)
    return chunked_head_loss(hidden, weight, None, loss_of, chunk)[0] / len(hidden)


def products(hidden, weight, teacher, teacher_weight, labels):
    """Return nothing of use: the matrix products alone, the limit of what any order of computation can reach."""

    def nothing(logits, rows):
        return (teacher[rows] @ teacher_weight.T)[0, 0], logits, logits[0, 0]

    return chunked_head_loss(hidden, weight, None, nothing, rows_at_a_time(len(weight), hidden.device))[0]


CONTENDERS = {
    "matrix products alone": products,
    "chunked": chunked,
    "chunked, jsd": functools.partial(chunked, divergence="jsd"),
    **PEERS,
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tokens", type=int, default=2048)
parser.add_argument("--width", type=int, default=384)
parser.add_argument("--vocabulary", type=int, default=50257)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
parser.add_argument("--one", help="run this one and print its seconds, bytes and loss")
parser.add_argument("--output", type=Path)
args = parser.parse_args()
if args.one:
    on_gpu = torch.cuda.is_available()
    made = functools.partial(torch.randn, dtype=getattr(torch, args.dtype), device="cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    hidden, teacher = made(args.tokens, args.width), made(args.tokens, args.width)
    weights = [made(args.vocabulary, args.width) / args.width**0.5 for _ in range(2)]
    labels = torch.randint(args.vocabulary, (args.tokens,), device=hidden.device)
    before = torch.cuda.memory_allocated() if on_gpu else resident()
    started = time.perf_counter()
    loss = CONTENDERS[args.one](hidden.requires_grad_(), weights[0].requires_grad_(), teacher, weights[1], labels)
    loss.backward()
    value = loss.item()  # waits for the device
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([time.perf_counter() - started, peak - before, value, float(weights[0].grad.float().norm())]))
    sys.exit()
found: dict[str, list] = {name: [] for name in args.contenders}
sizes = {k: str(getattr(args, k)) for k in ("tokens", "width", "vocabulary", "dtype")}
options = [part for k, v in sizes.items() for part in (f"--{k}", v)]
for _ in range(args.rounds):
    for name, runs in found.items():
        command = [sys.executable, __file__, "--one", name, *options]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
results = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
base = results.get("naive", next(iter(results.values())))
for name, (seconds, size, loss, norm) in results.items():
    line = f"x{seconds / base[0]:.2f} {size / 1e6:8.0f} MB x{size / base[1]:.3f}  loss {loss:.5f} norm {norm:.5g}"
    print(f"{name:24} {seconds:7.3f} s {line}")
if args.output:
    args.output.write_text(json.dumps({"sizes": sizes, "runs": found, "environment": environment()}, indent=2))
