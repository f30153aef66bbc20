"""How well `fit_budget` predicts bytes and latency: candidates that it never built, against its table.

hf-compress fit MODEL task.yaml --output-dir FITTED --max-latency 0.25
python scripts/bench_budget.py --fitted FITTED --output results.json
"""

import argparse
import json
import random
import statistics
from pathlib import Path

from scipy.stats import spearmanr

from hf_compress.measurement.environment import environment
from hf_compress.recipes.config import TaskConfig
from hf_compress.search.candidate import Cutter, candidates
from hf_compress.search.config import BudgetConfig
from hf_compress.search.fitting import Fitting
from hf_compress.search.forms import usable_forms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--fitted", type=Path, required=True, help="folder of a search")
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--per-form", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
asked = json.loads((args.fitted / "budget.json").read_text())
config, task = BudgetConfig.from_dict(asked["budget"]), TaskConfig.from_dict(asked["task"])
steps = Fitting(
    args.fitted, Cutter(asked["model"], task, config.samples, config.seed), config, usable_forms(config.forms)
)
table = steps.table()
new = [c for c in candidates(steps.cutter, steps.forms) if c not in table.measured]
draw = random.Random(args.seed)
chosen = [c for form in steps.forms for c in draw.sample([c for c in new if c.form == form], args.per_form)]
rows = []
for candidate, found in zip(chosen, steps.measure(chosen), strict=True):
    predicted = {what: table.predict(candidate, what) for what in ("bytes", "parameters", "latency")}
    rows.append({"candidate": str(candidate), "form": candidate.form, "predicted": predicted, "measured": found})
    print(f"{candidate!s:60} latency {predicted['latency']:8.2f} ms predicted, {found['latency']:8.2f} measured")
summary = {}
for what in ("bytes", "latency"):
    predicted, found = ([row[kind][what] for row in rows] for kind in ("predicted", "measured"))
    errors = [abs(p / m - 1) for p, m in zip(predicted, found, strict=True)]
    rank = float(spearmanr(predicted, found).statistic)
    summary[what] = {"rank correlation": rank, "median error": statistics.median(errors)}
    print(what, summary[what])
settings = {"per form": args.per_form, "seed": args.seed}
content = {"settings": settings, "environment": environment(), "summary": summary, "rows": rows}
args.output.write_text(json.dumps(content, indent=1) + "\n")
