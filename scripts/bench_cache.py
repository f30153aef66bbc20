"""Bytes per token of a teacher's cache, and how far the gradient of forward KL from it is from the exact one.

    python scripts/bench_cache.py --output results.json
The teacher's distributions are Zipf's law with noise over 50,257 tokens, at two entropies. The bias is the norm of the
mean gradient's error over the exact norm; with draws, what is left of it falls with the number of repeats. The spread
is that of a single gradient. Bytes are those of the files that cache_teacher wrote.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_compress import CacheConfig, cache_teacher
from hf_compress.distillation.losses import forward_kl
from hf_compress.distillation.sparse import sample_tail, sparse_divergence
from hf_compress.measurement.environment import environment

VOCABULARY = 50257


def distributions(power, rows=16):
    """Return logits of teacher and student."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.arange(1.0, VOCABULARY + 1)
    order = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(rows)])
    teacher = torch.empty(rows, VOCABULARY).scatter_(1, order, (-power * ranks.log()).expand(rows, -1))
    return teacher, teacher + 0.5 * torch.randn(teacher.shape, generator=generator)


def gradient(student, target):
    """Return the gradient with respect to the student's logits."""
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(sparse_divergence(leaf, target), leaf)[0]


def bytes_per_token(config):
    """Return the bytes on disk over the tokens cached."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=1, n_head=2))
    ids = torch.randint(VOCABULARY, (64, 128), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": i, "labels": i} for i in ids]
    with tempfile.TemporaryDirectory() as folder:
        made = cache_teacher(model, rows, Path(folder) / "c", config, progress=False)
        return sum(p.stat().st_size for p in made.rglob("*.arrow")) / ids.numel()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeats", type=int, default=100)
parser.add_argument("--output", type=Path)
args = parser.parse_args()
found = []
for power in (1.0, 1.5):
    teacher, student = distributions(power)
    p = teacher.softmax(-1)
    entropy = float(-(p * p.log()).sum(-1).mean())
    leaf = student.clone().requires_grad_()
    (exact,) = torch.autograd.grad(forward_kl(leaf, teacher)[0], leaf)
    for k in (8, 32, 128):
        for draws in (0, 16):
            generator = torch.Generator().manual_seed(1)
            repeats = args.repeats if draws else 1
            made = [gradient(student, sample_tail(teacher, k, draws, generator)) for _ in range(repeats)]
            bias = float((torch.stack(made).mean(0) - exact).norm() / exact.norm())
            spread = float(torch.stack([(g - exact).norm() for g in made]).mean() / exact.norm())
            size = bytes_per_token(CacheConfig(top_k=k, tail_draws=draws))
            row = {"entropy": entropy, "k": k, "draws": draws, "bytes": size, "bias": bias, "one": spread}
            found.append(row)
            print(
                f"entropy {entropy:.2f} k {k:4} draws {draws:3} {size:7.1f} B/token bias {bias:.3f} one {spread:.3f}"
            )
if args.output:
    settings = {"repeats": args.repeats, "vocabulary": VOCABULARY}
    args.output.write_text(json.dumps({"settings": settings, "rows": found, "environment": environment()}, indent=2))
