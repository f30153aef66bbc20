"""Latency of a model with fewer units, layers and channels beside its multiply-accumulates: ratios to the whole one.

    python scripts/bench_latency.py --model FOLDER_OR_ID --output results.json --batch-sizes 1 16 32

All are timed in turn. What is cut does not matter for time, so the first units stay.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

from hf_compress import make_student
from hf_compress.measurement.environment import environment
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.measurement.load import model_class
from hf_compress.measurement.speed import measure_latency

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 32])
parser.add_argument("--length", type=int, default=128)
parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--seconds", type=float, default=3.0)
args = parser.parse_args()
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(args.threads)
dense = model_class(args.model).from_pretrained(args.model, dtype=torch.float32).eval()
models = {"dense": dense}
for share in args.shares:
    kept = {"ffn": share, "layers": max(1, round(share * dense.config.num_hidden_layers)), "hidden": share}
    models |= {f"{axis} {amount:g}": make_student(dense, **{axis: amount}) for axis, amount in kept.items()}
    models[f"ffn {share:g}, layers {kept['layers']}"] = make_student(dense, ffn=share, layers=kept["layers"])
times = measure_latency(
    models, lambda m, n: dummy_inputs(m, n, args.length), batch_sizes=args.batch_sizes, seconds=args.seconds, blocks=3
)
rows = []
for name, found in times.items():
    # Latency, throughput and multiply-accumulates of each batch size.
    for size, latency, macs, base, base_macs in zip(
        args.batch_sizes, found[::3], found[2::3], times["dense"][::3], times["dense"][2::3], strict=True
    ):
        time_ratio, work_ratio = latency.value / base.value, macs.value / base_macs.value
        rows.append({"model": name, "batch_size": size, "ms": latency.value, "macs": macs.value})
        rows[-1] |= {"latency_ratio": time_ratio, "macs_ratio": work_ratio, "conditions": dict(latency.conditions)}
        print(
            f"{name:20} batch {size:3} {latency.value:8.2f} ms  x{time_ratio:.3f} of the time, x{work_ratio:.3f} of "
            f"the multiply-accumulates: faster by {work_ratio / time_ratio:.2f} of what these promise"
        )
settings = {k: v for k, v in vars(args).items() if k not in ("model", "output")}
args.output.write_text(json.dumps({"settings": settings, "environment": environment(), "rows": rows}, indent=1) + "\n")
