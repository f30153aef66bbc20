"""Write RESULTS.md and its pictures from the records in scripts/results, each table with a link to its record.

Usage: `python scripts/make_results.py`.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.measurement.record import Record, sort_records
from hf_compress.report.plots import plot_quality_latency, plot_quality_size, save_plot
from hf_compress.report.tables import draw_table, format_value

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "scripts" / "results"
PICTURES = RESULTS / "pictures"
INTRODUCTION = """# Results

What the scripts in `scripts/` measured, each number from the record that stands beside it;
`python scripts/make_results.py` writes this page. SST-2 is scored on its 872 validation sentences, WikiText-2 on its
validation text, in the recipes on its test text. Times compare within a table only: tables were made on machines of
different speed, some beside other jobs. "D" is the dense model; behind a number stands how many seeds it is of.

The targets are our own, set before the runs from the papers and from what careful users of other packages get. A
target that was missed says so.

Some of this was trained before gradients of weights that are gone for good were kept out of clipping
(`max_grad_norm`): on SST-2, under "Single weights" and "Defaults of gradual pruning", the rows of magnitude and those
without regrowth, but for the tables in bfloat16 and beside torch.nn.utils.prune; the healed language models; "Every
task once". On digits, run again, rows with regrowth and of whole neurons came out the same to the last digit. ONNX
Runtime's static 8 bit of networks with convolutions (MNIST, cifar10, fashion-mnist, spoken-digits) is older than the 7
bits that these get there now.
"""


def load(name: str) -> dict[str, Any]:
    """Return a record by its file name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def link(*names: str) -> str:
    """Return where the numbers are."""
    return "Records: " + ", ".join(f"[{n}](scripts/results/{n}.json)" for n in names) + "."


def spread(values: Iterable[float], factor: float = 1.0, digits: int = 2) -> str:
    """Return mean, deviation and count of runs that differ in their seed."""
    values = [factor * v for v in values]
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else f"{mean} (1)"


def percent(runs: Mapping[str, float]) -> str:
    """Return an accuracy over seeds."""
    return spread(runs.values(), 100)


def points(runs: Mapping[str, float], dense: Mapping[str, float]) -> float:
    """Return what was lost against the dense model, in points."""
    return 100 * (statistics.mean(runs.values()) - statistics.mean(dense.values()))


def verdict(found: float, target: float) -> str:
    """Say whether a loss in points reached its target; both are negative."""
    return f"D - {-target:g}: " + ("reached" if round(found, 2) >= target else f"missed by {target - found:.2f}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return draw_table([list(head), *map(list, rows)], "markdown")


def records(name: str) -> list[Record]:
    """Return the records within a file."""
    return [Record.from_dict(r) for r in load(name)["records"]]


def value(record: Record, name: str, **conditions: Any) -> str:
    """Return a measurement, or a dash where it was not made."""
    found = [m for m in record.measurements if m.name == name and conditions.items() <= m.conditions.items()]
    return format_value(found[0]) if found else "-"


def record_table(name: str, quality: str, batches: Sequence[int] = (1, 32)) -> str:
    """Return size, speed and quality of all models of a file."""
    head = ["model", quality, "weights on disk", *(f"latency, batch {b}" for b in batches), "peak memory"]
    rows = [
        [
            r.model, value(r, quality), value(r, "bytes_on_disk"),
            *(value(r, "latency", batch_size=b) for b in batches), value(r, "peak_memory"),
        ]
        for r in records(name)
    ]  # fmt: skip
    return table(head, rows)


def pictures(name: str, batch: int = 1) -> str:
    """Draw quality against size and latency."""
    found = records(name)
    PICTURES.mkdir(exist_ok=True)
    lines = []
    for what, axes in (
        ("size", plot_quality_size(found)),
        ("latency", plot_quality_latency(found, batch_size=batch)),
    ):
        path = save_plot(axes, PICTURES / f"{name}_{what}.png")
        lines.append(f"![quality and {what}]({path.relative_to(ROOT).as_posix()})")
    return "\n".join(lines)


def lost_table(name: str, head: str, targets: Mapping[str, float]) -> str:
    """Return accuracy and what was lost against the dense model, by case, with targets reached or missed."""
    runs = load(name)["runs"]
    rows = []
    for case, found in runs.items():
        if case != "dense":
            lost = points(found, runs["dense"])
            said = verdict(lost, targets[case]) if case in targets else ""
            rows.append([case, percent(found), f"{lost:+.2f}", said])
    return table([head, "accuracy, %", "points", "target"], rows)


def single_weights() -> str:
    """Gradual pruning in the Trainer."""
    targets = {
        "0.8 | platon | distilled": -0.4,
        "0.9 | platon | distilled": -1.5,
        "0.9 | platon, no regrowth | distilled": -1.5,
        "2:4 | sparsegpt, 1 round | distilled": -0.2,
    }
    parts = []
    names = ("pruning_sst2", "pruning_sst2_long", "pruning_sst2_long_default", "pruning_sst2_nm")
    for name in names:
        content = load(name)
        dense = percent(content["runs"]["dense"])
        precision = ", bfloat16" if content["environment"].get("bf16") else ""
        parts.append(f"{content['settings']['steps']:,} steps of 32 sentences{precision}; D = {dense} %:")
        parts.append(lost_table(name, "sparsity, criterion, teacher", targets))
    return "\n\n".join(
        [
            "Single weights of MiniLM's encoder; N:M by `prune_oneshot` and then trained with its zeros held.",
            *parts, beside_torch(),
            link(*names, "pruning_sst2_torch", "scores_sst2"),
        ]
    )  # fmt: skip


def beside_torch() -> str:
    """The default of gradual pruning and torch's own."""
    content = load("pruning_sst2_torch")
    return (
        "Beside torch.nn.utils.prune (the largest of all layers stay, at once, in the stock Trainer), "
        f"{content['settings']['steps']:,} steps each, no teacher, from the dense model's second stage; D = "
        f"{percent(content['runs']['dense'])} %. `platon, no regrowth` is the Trainer's default:\n\n"
        + lost_table("pruning_sst2_torch", "sparsity, criterion, teacher", {})
    )


def defaults() -> str:
    """What led to the defaults of gradual pruning."""
    sst2 = load("defaults_sst2")
    return "\n\n".join([
        "What `PruningConfig` does unless told otherwise was chosen by these, on data put aside for choices. Single "
        "weights are ranked by PLATON over all targets (`platon, global`; on MiniLM `platon, no regrowth`), units by "
        "Taylor. A vision transformer of 0.2 M parameters on scikit-learn's digits, pruned without a teacher:",
        runs_table("defaults_digits"),
        f"MiniLM's encoder on SST-2, {sst2['settings']['steps']} steps, a short run, without a teacher, on 2,000 "
        "training phrases put aside:",
        runs_table("defaults_sst2"),
        link("defaults_digits", "defaults_sst2"),
    ])  # fmt: skip


def dense_model() -> str:
    """What all rows of SST-2 start from."""
    content = load("dense_sst2")
    rows = [[name, case["data"], ", ".join(f"{100 * v:.2f}" for v in case["machines"].values())]
            for name, case in content["cases"].items()]  # fmt: skip
    latest = load("pruning_sst2_nm")["runs"]["dense"]["0"]
    best = max(latest, *(v for case in content["cases"].values() for v in case["machines"].values()))
    once, again, third = (dense_stages(f"dense_sst2_{name}") for name in ("seeds", "again", "third"))
    missed = 100 * (content["target"] - best)
    return "\n\n".join([
        "all-MiniLM-L6-v2 fine-tuned, `phrases` with one command and seed on three machines, whose threads and "
        "kernels add up in another order, in two processes; `one process` makes twice as many steps of half the "
        "sentences. The tables below start from the first two; the one beside torch.nn.utils.prune, the three "
        "seeds of everything at once from whole sentences, those of sst2-smallest from these in bfloat16. That stage "
        "starts from the third, and from the one process; in bfloat16 from that in bfloat16:",
        table(["stage", "data", "accuracy, %"], rows),
        f"`phrases` in float32, one process, on an eighth machine: {100 * latest:.2f} %; 2:4 and the comparison with "
        f"Torch-Pruning start from that. Target {100 * content['target']:g} %: missed, by the best of all by "
        f"{missed:.2f}.",
        "By one command, `dense_sst2.py --seeds 42 43 44`, bfloat16, on a sixth machine; `aside` are those 2,000:",
        table(["stage", "accuracy, %", "aside, %"], once),
        "The same with `--seeds 42` on a seventh; from its phrases start the units removed over three seeds:",
        table(["stage", "accuracy, %", "aside, %"], again),
        "And on a ninth; from its phrases start the 90 % zeros over three seeds in 4,200 steps:",
        table(["stage", "accuracy, %", "aside, %"], third),
        link("dense_sst2", *(f"dense_sst2_{name}" for name in ("seeds", "again", "third")), "pruning_sst2_nm"),
    ])  # fmt: skip


def dense_stages(name: str) -> list[list[str]]:
    """Return the rows of what dense_sst2.py wrote."""
    by_stage: dict[str, list[dict]] = {}
    for run, scores in load(name)["accuracy"].items():
        by_stage.setdefault(run.split(" | ")[0], []).append(scores)
    words = {"phrases": "phrases", "sentences": "then whole sentences", "mean": "the mean of these models' weights"}
    return [[words[stage], *(spread([s[n] for s in found], 100) for n in ("validation", "aside"))]
            for stage, found in by_stage.items()]  # fmt: skip


def units() -> str:
    """Units removed without training and distilled, and zeroed in the Trainer."""
    parts = ["Heads and neurons of MiniLM cut untrained as in the table before (6 rounds, repaired), then distilled."]
    for name in ("structured_sst2_recovered_seeds", "structured_sst2_recovered"):
        parts += [from_dense(name), recovered_table(name)]
    parts.append(
        "Neurons zeroed gradually in the Trainer, as many in each layer, which a config can say; without three "
        "quarters of them half of the multiply-accumulates are left."
    )
    for name in ("units_sst2_seeds", "units_sst2"):
        lost = lost_table(name, "zero, unit, teacher", {"0.75 | ffn | distilled": -0.3})
        parts += [from_dense(name), lost]
    names = ("structured_sst2_recovered_seeds", "structured_sst2_recovered", "units_sst2_seeds", "units_sst2")
    return "\n\n".join([*parts, link(*names)])


def from_dense(name: str) -> str:
    """Return how long a record's models were trained, and what from."""
    content = load(name)
    precision = "bfloat16" if content["environment"]["bf16"] else "float32"
    dense = percent(content["runs"]["dense"]).split(" ")[0]
    return f"{content['settings']['steps']:,} steps in {precision} from a dense model of {dense} %:"


def recovered_table(name: str) -> str:
    """Return what heads and neurons less cost after training."""
    runs, targets = load(name)["runs"], {0.5: -0.3, 0.333: -1.0, 0.25: -2.0}
    rows = []
    for case, found in runs.items():
        if case != "dense":
            keep, how = float(case.split(" | ")[1]), case.rsplit("distilled: ", 1)[1]
            lost = points(found, runs["dense"])
            rows.append([f"{keep:g}", how, percent(found), f"{lost:+.2f}", verdict(lost, targets[keep])])
    return table(["kept", "distilled from", "accuracy, %", "points", "target"], rows)


def latencies() -> str:
    """Latency beside multiply-accumulates."""
    parts = ["How much of what fewer multiply-accumulates promise arrives in time: 1 is all of it, the target 0.9."]
    for name, what in (("latency_minilm", "MiniLM"), ("latency_llama", "a Llama of 8 layers of 384")):
        content = load(name)
        cell = {(r["model"], r["batch_size"]): r for r in content["rows"]}
        sizes = content["settings"]["batch_sizes"]
        rows = [
            [model, f"x{cell[model, sizes[0]]['macs_ratio']:.2f}",
             *(f"x{r['latency_ratio']:.2f} ({r['macs_ratio'] / r['latency_ratio']:.2f})"
               for r in (cell[model, size] for size in sizes))]
            for model in dict.fromkeys(r["model"] for r in content["rows"]) if model != "dense"
        ]  # fmt: skip
        head = [f"{what}: kept", "multiply-accumulates", *(f"latency, batch {b}" for b in sizes)]
        parts.append(table(head, rows))
    return "\n\n".join([*parts, link("latency_minilm", "latency_llama")])


# Recipe -> model, points or factor of perplexity that may be lost, how much smaller it must be.
GALLERY_TARGETS = {
    "fashion-mnist": ("shrunk", 0.7, 1),
    "spoken-digits": ("int8", 1.0, 8),
    "wikitext": ("distilled", 1.04, 1),
}


# What a reader of a recipe's table must know besides.
REMARKS = {
    **dict.fromkeys(
        ("cifar10", "fashion-mnist"),
        "`same-size` has the shape of `shrunk` and was trained on labels alone for as many steps as both of its "
        "stages; `whole-int8` is the teacher in the same 8 bits.",
    ),
    "mrpc": "Beside labelled pairs `distilled` learnt from pairs without labels, which `labels-alone` never saw.",
    "wikitext": "Half of the blocks' weights are gone; embeddings stay. The dense model saw its text little more than "
    "once and the student learns on, so it ends below it; from one that was trained to the end more is lost. "
    "Card and times are of the first seed, in float32; the others were trained on other machines, in bfloat16.",
}


def recipe(folder: Path) -> str:
    """One recipe beside its card: table, target, picture."""
    found = sort_records(
        Record.from_dict(json.loads(p.read_text(encoding="utf-8"))) for p in (folder / "records").glob("*.json")
    )
    found = [r for r in found if "-seed" not in r.model]
    quality = next(q for q in ("f1", "accuracy", "perplexity") if any(m.name == q for m in found[0].measurements))
    factor = 1 if quality == "perplexity" else 100
    seeds = folder / "seeds.json"
    runs = json.loads(seeds.read_text(encoding="utf-8")) if seeds.is_file() else {}
    values = {
        r.model: [run[r.model][quality] for run in runs.values() if r.model in run]
        or [m.value for m in r.measurements if m.name == quality]
        for r in found
    }
    sizes = sorted({m.conditions["batch_size"] for r in found for m in r.measurements if m.name == "latency"})
    head = ["model", quality if factor == 1 else f"{quality}, %", "weights on disk", *(f"batch {n}" for n in sizes)]
    rows = [
        [r.model, spread(values[r.model], factor), value(r, "bytes_on_disk"),
         *(value(r, "latency", batch_size=n) for n in sizes)]
        for r in found
    ]  # fmt: skip
    remark = [REMARKS[folder.name]] if folder.name in REMARKS else []
    parts = [table(head, rows), *met(folder.name, found, values), *remark]
    link_to = f"model_cards/{folder.name}"
    parts.append(f"![{folder.name}, quality and size]({link_to}/quality_size.png)")
    return "\n\n".join([*parts, f"[Card]({link_to}/README.md), [records]({link_to}/records)."])


def met(name: str, found: Sequence[Record], values: Mapping[str, Sequence[float]]) -> list[str]:
    """Say whether a recipe reached its target, if it has one."""
    if name not in GALLERY_TARGETS:
        return []
    model, bound, times = GALLERY_TARGETS[name]
    size = {r.model: m.value for r in found for m in r.measurements if m.name == "bytes_on_disk"}
    first, smaller = found[0].model, size[found[0].model] / size[model]
    means = [statistics.mean(values[m]) for m in (first, model)]
    if found[0].model == "dense":
        change, is_kept, wanted = f"x{means[1] / means[0]:.3f}", means[1] <= bound * means[0], f"x{bound:g}"
    else:
        lost = 100 * (means[0] - means[1])
        change, is_kept, wanted = f"{-lost:+.2f} points", round(lost, 2) <= bound, f"-{bound:g} points"
    reached = "reached" if is_kept and smaller >= times else "missed"
    size_wanted = f" at {times} times smaller" if times > 1 else ""
    return [f"Target of {model}: {wanted}{size_wanted}: {reached} ({change}, {smaller:.1f} times smaller)."]


def recipes() -> dict[str, Callable[[], str]]:
    """Return a section for each recipe that has a card."""
    folders = sorted(p.parent for p in (ROOT / "model_cards").glob("*/records"))
    return {folder.name: lambda folder=folder: recipe(folder) for folder in folders}


def without_training() -> str:
    """Heads and neurons removed in minutes."""
    runs = load("structured_sst2_per_layer")["runs"]
    targets = {"0.5": -0.7, "0.333": -1.5, "0.25": -3.5}
    rows = []
    for case, found in runs.items():
        if case == "dense":
            continue
        _, keep, criterion, rounds, repair = case.split(" | ")
        lost = points(found, runs["dense"])
        is_best = repair == "repair" and rounds.startswith("6")
        rows.append([keep, f"{criterion}, {rounds}", repair, percent(found), f"{lost:+.2f}",
                     verdict(lost, targets[keep]) if is_best else ""])  # fmt: skip
    text = "Heads and neurons of MiniLM cut without training, each layer what it can spare, 1,024 sentences."
    uniform = load("structured_sst2_uniform")["runs"]
    cases = [c for c in uniform if c != "dense"]
    plain = table(["as many in each layer, neurons only, a half kept", "accuracy, %"],
                  [[" ".join(c.split(" | ")[2:]), percent(uniform[c])] for c in cases])  # fmt: skip
    head = ["kept", "criterion", "repair", "accuracy, %", "points", "target"]
    return "\n\n".join([text, table(head, rows), plain, link("structured_sst2_per_layer", "structured_sst2_uniform")])


def runs_table(name: str) -> str:
    """Return the accuracies of a file with runs by case and seed."""
    return table(["case", "accuracy, %"], [[case, percent(found)] for case, found in load(name)["runs"].items()])


# Factors of the perplexity of float32.
NF4_TARGETS = {"nf4": 1.02, "nf4, zero, trained": 1.005, "nf4, loftq, trained": 1.005}


def recovered() -> str:
    """4 bits with an adapter or after training with rounded weights."""
    return "\n\n".join([
        "Three seeds of the adapter's training, in bfloat16, on one dense model:",
        ratio_table("recovery_wikitext_seeds", NF4_TARGETS),
        "One seed on another, in float32:", ratio_table("recovery_wikitext", NF4_TARGETS),
        link("recovery_wikitext_seeds", "recovery_wikitext"),
    ])  # fmt: skip


def characters() -> str:
    """A small character model that learns from a larger one."""
    runs = {case: list(found.values()) for case, found in load("distillation_lm")["runs"].items()}
    plain = statistics.mean(runs["plain"])
    rows = []
    for case, values in runs.items():
        gained, is_taught = statistics.mean(values) - plain, case not in ("teacher", "plain")
        said = "-0.08: " + ("reached" if round(gained, 3) <= -0.08 else f"missed by {gained + 0.08:.3f}")
        rows.append([case, spread(values, digits=3), f"{gained:+.3f}", said if is_taught else ""])
    head = ["case", "validation loss, nats", "beside plain", "target"]
    told = (
        "The target is that of short schedules; of long ones, where plain training comes far too, -0.03 to -0.05 are "
        "expected."
    )
    return "\n\n".join([table(head, rows), told, link("distillation_lm")])


def ratio_table(name: str, targets: Mapping[str, float]) -> str:
    """Return perplexities and how they stand to the dense model's, by case, with targets reached or missed."""
    runs = {case: [v["perplexity"] for v in found.values()] for case, found in load(name)["runs"].items()}
    (first, dense), *others = runs.items()
    rows = [[first, spread(dense), "", ""]]
    for case, values in others:
        ratio = statistics.mean(values) / statistics.mean(dense)
        bound = targets.get(case)
        said = "reached" if bound and round(ratio, 3) <= bound else "missed"
        rows.append([case, spread(values), f"x{ratio:.3f}", f"x{bound:g}: {said}" if bound else ""])
    return table(["case", "perplexity", "beside " + first, "target"], rows)


def weights_of_language_models() -> str:
    """Single weights of the small Llama: untrained, and healed."""
    amounts = {"0.5": (1.03, 1.005), "2:4": (1.05, 1.02), "0.7": (1.17, 1.05)}
    untrained = {f"{a} | sparsegpt, refined": bounds[0] for a, bounds in amounts.items()}
    healed = {f"{a} | {c} | 250 steps healed": bounds[1]
              for a, bounds in amounts.items() for c in ("sparsegpt", "sparsegpt, refined")}  # fmt: skip
    return "\n\n".join([
        "`sparsegpt, refined` is the default of `prune_oneshot`. Three draws of the text that it looks at:",
        ratio_table("oneshot_wikitext_seeds", untrained),
        "One draw, on another dense model:",
        ratio_table("oneshot_wikitext", untrained),
        "Healed: distilled from the dense model with the zeros held.",
        ratio_table("oneshot_wikitext_healed", healed),
        link("oneshot_wikitext_seeds", "oneshot_wikitext", "oneshot_wikitext_healed"),
    ])  # fmt: skip


def peers() -> str:
    """One-shot pruning beside LLM Compressor, steps beside torch's own pruning."""
    content = load("peers_oneshot")
    head = ["tool", "method", "zeros", "perplexity", "seconds", "memory over the model, MB"]
    rows = []
    for run in content["quality"]["runs"]:
        method = ", ".join([run["method"], *(f"{name} {value}" for name, value in run["options"].items())])
        measured = [f"{run['perplexity']:.2f}", f"{run['seconds']:.0f}", f"{run['over_model_mb']:.0f}"]
        rows.append([run["tool"], method, run["amount"], *measured])
    steps = load("bench_trainer_peers")["ratio"]
    structured = load("peers_structured")["runs"]
    return "\n\n".join([
        "One-shot pruning: " + content["quality"]["model"] + ".", table(head, rows),
        "Heads and neurons of MiniLM removed without training, SST-2, by the same 1,024 sentences in six steps, each "
        "ranked over all layers (Torch-Pruning's `global_pruning` and `isomorphic`; bookkeeping of heads by hand); "
        f"D = {percent(structured['dense'])} %:",
        lost_table("peers_structured", "kept, tool", {}),
        "A training step of MiniLM, 32 x 32 tokens, against the stock Trainer's (distillation: and teacher's pass):",
        table(["what", "time"], [[k, f"x{v:.3f}"] for k, v in steps.items()]),
        link("peers_oneshot", "peers_structured", "bench_trainer_peers", "head_cpu_384", "head_cpu_768", "select_cpu"),
    ])  # fmt: skip


def every_task() -> str:
    """Every script once, on a little real data."""
    rows = []
    for run in load("scripts")["runs"]:
        quality, sizes = [], []
        for model in run["models"].values():
            found = model.get("quality", {})
            name = next((n for n in ("f1", *found) if n in found), None)
            quality.append(f"{name} {found[name]:.4g}" if name else "")
            sizes.append(f"{model['size']['bytes_on_disk'] / 1e6:.1f}")
        rows.append([run["task"], run["data"], f"`{run['command']}`", " → ".join(quality), " → ".join(sizes)])
    told = "The models are small and hardly trained: this shows that the scripts work, not what the methods can do."
    return told + "\n\n" + table(["task", "data", "command", "before → after", "MB"], rows)


def fashion() -> str:
    """Small networks that learn from a teacher, and a network with fewer and fewer weights."""
    content = load("images_fashion")
    runs, settings = content["runs"], content["settings"]
    dense = runs["dense"]
    students = []
    for name, more, source in (("small", 1.0, runs), ("vit", 1.5, load("images_vit")["runs"])):
        labels, distilled = (source[f"{name} | {how}"] for how in ("labels", "distilled"))
        gained = points(distilled, labels)
        said = "reached" if round(gained, 2) >= more else f"missed by {more - gained:.2f}"
        students.append([name, percent(labels), percent(distilled), f"{gained:+.2f}", f"+{more:g}: {said}"])
    targets = {"0.9 | distilled": -0.1, "0.95 | distilled": -0.4, "0.98 | distilled": -1.2}
    fewer = load("images_three_quarters")["runs"]["dense"]
    vit, quick = load("images_vit")["runs"]["dense"], load("images_vnni")["runs"]
    zeros = []
    for case in sorted(c for c in runs if c[0] == "0"):
        lost = points(runs[case], dense)
        target = verdict(lost, targets[case]) if case in targets else ""
        zeros.append([*case.split(" | "), percent(runs[case]), f"{lost:+.2f}", target])
    return "\n\n".join([
        "13,500 training images, scored on the 5,000 of the test set. A convolutional module of 279 thousand "
        f"parameters, {settings['epochs']} epochs, has {percent(dense)} %; seed 0 is from another machine than seeds "
        "1 and 2, in float32 instead of bfloat16. Smaller ones learn for "
        f"{settings['student_epochs']} epochs, from labels alone or from that one too; `small` is "
        "such a module of 40 thousand parameters, `vit` a vision transformer of 4 layers of 64, which 20 epochs do "
        f"not train to the end, from a module of {percent(vit)} %:",
        table(["student", "labels, %", "distilled, %", "points", "target"], students),
        f"Its own weights zeroed, in {settings['pruning_epochs']} more epochs, by torch.nn.utils.prune at once (the "
        "largest of all layers stay) in the stock Trainer, or gradually by the Trainer's default, alone or distilled "
        "from itself as it was:",
        table(["zeros", "how", "accuracy, %", "points", "target"], zeros),
        "Three quarters of them zero, and ONNX Runtime's static 8 bit, untrained, on a processor without VNNI, where "
        "pairs of products of 8 bits overflow, so that convolutions get 7 now; those in 8 bits were exported by the "
        f"code before; D = {percent(fewer)} %:",
        lost_table("images_three_quarters", "zeros", {"0.75 | distilled, int8": -0.05}),
        "On a processor with VNNI the whole network has, of "
        f"{percent(quick['dense'])} %, {percent(quick['dense | int8'])} with 7 bits and "
        f"{percent(quick['dense | int8, convolutions in 8 bits'])} with 8, by the code before.",
        "What the teacher's terms should be, on 1,500 training images put aside, where less than 0.7 points may be "
        "chance: `distilled` has the default (T 2, weights 0.5 and 0.5).",
        runs_table("images_terms"),
        "What the criterion should be, on the same images: `alone` is the default, PLATON over all weights until 0.65 "
        "of the steps; magnitude at once is what torch.nn.utils.prune does:",
        runs_table("images_criteria"),
        link(*(f"images_{n}" for n in ("fashion", "vit", "three_quarters", "vnni", "terms", "criteria"))),
    ])  # fmt: skip


# Case -> model, least accuracy, how much smaller it must be.
TEXTBOOK_TARGETS = {"mnist": (("tenth-int8", 0.993, 10), ("twentieth-int8", 0.985, 20))}


def other_data() -> str:
    """The textbook's cases; sizes and times are of seed 0."""
    parts, of_seeds = [], load("textbook_seeds")
    for name, found in load("textbook").items():
        made = sort_records(Record.from_dict(r) for r in found)
        quality = next(m.name for m in made[0].measurements if m.unit in ("fraction", "") and m.name != "sparsity")
        scores = {r.model: [seed[r.model][quality] for seed in of_seeds[name].values()] for r in made}
        rows = [[r.model, spread(scores[r.model], 100), value(r, "bytes_on_disk"), value(r, "latency", batch_size=1)]
                for r in made]  # fmt: skip
        parts.append(
            f"**{name}**\n\n" + table(["model", f"{quality}, %", "weights on disk", "latency, batch 1"], rows)
        )
        sizes = {r.model: r.get("bytes_on_disk").value for r in made}
        for model, least, times in TEXTBOOK_TARGETS.get(name, ()):
            mean, smaller = statistics.mean(scores[model]), sizes[made[0].model] / sizes[model]
            reached = "reached" if mean >= least and smaller >= times else "missed"
            parts.append(
                f"Target: {100 * least:g} % at {times} times smaller: {reached} by {model} ({100 * mean:.2f} %, "
                f"{smaller:.1f} times smaller)."
            )
    told = "Sizes and times are of seed 0; MNIST's seed 0 was trained on another machine, with AVX2 only."
    return "\n\n".join([*parts, told, link("textbook", "textbook_seeds")])


def budget() -> str:
    """Fitted to a budget by `hf-compress fit`."""
    return "\n\n".join([
        '"An eighth of the bytes, a quarter of the latency", by `hf-compress fit`:',
        record_table("budget_sst2", "accuracy", (1,)), link("budget_sst2"),
        "The same for a vision transformer on digits, in five minutes, with half of the latency:",
        record_table("budget_digits", "accuracy", (1,)), link("budget_digits", "budget_predicted"),
    ])  # fmt: skip


def of_seeds(name: str, head: str) -> tuple[str, float]:
    """Return a table of the steps of everything at once over seeds, and the points that the result lost."""
    found, runs = {r.model: r for r in records(name)}, load(name)["accuracy"].values()
    steps = {"cut, untrained": [r["cut"] for r in runs], "distilled": [r["distilled"] for r in runs],
             "in 8 bit": [r.get("accuracy").value for m, r in found.items() if m.startswith("small")]}  # fmt: skip
    dense = found["dense"].get("accuracy").value
    lost = {step: 100 * (statistics.mean(values) - dense) for step, values in steps.items()}
    rows = [[step, spread(values, 100), f"{lost[step]:+.2f}"] for step, values in steps.items()]
    return table([head, "accuracy, %", "points"], rows), lost["in 8 bit"]


def percent_of(name: str, model: str) -> str:
    """Return the accuracy of a model of a file."""
    (found,) = (r for r in records(name) if r.model == model)
    return f"{100 * found.get('accuracy').value:.2f}"


def distances(name: str) -> str:
    """Return how far the exports of the small models of a file are from these."""
    found = sorted(r.method["export"]["difference"] for r in records(name) if r.model.startswith("small"))
    return f"{found[0]:.2g} to {found[-1]:.2g}"


def joint() -> str:
    """Everything at once, by hand."""
    parts = []
    for name, share, place in (
        ("joint_sst2_third", "30", "On a processor with AVX2 only, where products of bytes are no faster than floats"),
        ("joint_sst2", "40", "On another, where bytes and bfloat16 are faster than floats"),
    ):
        (dense,) = (r for r in records(name) if r.role == "baseline")
        (result,) = (r for r in records(name) if r.role == "result")
        (eighth,) = (r for r in records(name) if r.model == "dense-int8")
        lost = 100 * (result.get("accuracy").value - dense.get("accuracy").value)
        times = [[m.value for m in r.find("latency")] for r in (dense, eighth, result)]
        faster, than_eighth = (
            " and ".join(f"x{a / b:.1f}" for a, b in zip(each, times[2], strict=True)) for each in times[:2]
        )
        parts += [
            f"{place}: {share} % of heads and neurons, the corpus's own vocabulary, 8 bit, one seed. Target "
            f"{verdict(lost, -0.7)}. At batch 1 and 32 {faster} as fast as the dense model (target x8) and "
            f"{than_eighth} as fast as that in 8 bit (target x2).",
            record_table(name, "accuracy"), pictures(name),
        ]  # fmt: skip
    found, names = {r.model: r for r in records("joint_sst2_seeds")}, ("joint_sst2_seeds", "joint_sst2_smallest")
    small = next(r for model, r in found.items() if model.startswith("small"))
    seeds, lost = of_seeds(names[0], "30 % of heads and neurons")
    parts += [
        f"The first again on a fourth machine, three seeds, from a dense model of "
        f"{100 * found['dense'].get('accuracy').value:.2f} %; {value(small, 'bytes_on_disk')}. Target "
        f"{verdict(lost, -0.7)}.",
        seeds,
        "Fewer still, distilled from logits alone in bfloat16 on a processor that has it, from a dense model of "
        f"{percent_of('joint_sst2_smallest', 'dense')} %:",
        of_seeds(names[1], "18 % of heads and neurons")[0],
        f"An earlier run of it, from a dense model of {percent_of('joint_sst2_smallest_mixed', 'dense')} %, whose "
        "exports still held the mixed precision of the training, which `export` leaves out since: their logits lay "
        f"{distances('joint_sst2_smallest_mixed')} (relative) from the model's, those above "
        f"{distances('joint_sst2_smallest')}. Its first seed in float32 on a processor that has AVX2 only gave "
        f"{percent_of('joint_sst2_smallest_avx2', 'small')} % in 8 bit:",
        of_seeds("joint_sst2_smallest_mixed", "18 % of heads and neurons")[0],
    ]  # fmt: skip
    older = ("joint_sst2_smallest_mixed", "joint_sst2_smallest_avx2")
    return "\n\n".join([*parts, link("joint_sst2_third", "joint_sst2", *names, *older)])


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "SST-2, MiniLM (6 layers, 22.7 M parameters)": {
        "The dense model": dense_model,
        "Everything at once": joint,
        "Fitted to a budget": budget,
        "In few bits": lambda: "\n\n".join(
            [record_table("quantization_sst2", "accuracy"), pictures("quantization_sst2"), link("quantization_sst2")]
        ),
        "Single weights": single_weights,
        "Defaults of gradual pruning": defaults,
        "Heads and neurons without training": without_training,
        "Heads and neurons, trained": units,
        "3 of 6 layers, distilled": lambda: "\n\n".join([runs_table("distillation_sst2"), link("distillation_sst2")]),
    },
    "Language models": {
        "A Llama of 6.5 M parameters on WikiText-2, in few bits": lambda: "\n\n".join(
            [record_table("quantization_wikitext", "perplexity"), link("quantization_wikitext")]
        ),
        "Few bits, recovered": recovered,
        "Single weights without training": weights_of_language_models,
        "Neurons, heads, layers, width": lambda: "\n\n".join(
            [ratio_table("structured_wikitext", {}), link("structured_wikitext")]
        ),
        "Llamas of 260 thousand parameters that tell stories": lambda: "\n\n".join(
            [
                "Trained on text that the model itself made up, scored on five real stories. Three of its four heads "
                "are no legal number, so all stay; of five layers two.",
                ratio_table("structured_stories", {}),
                link("structured_stories"),
            ]
        ),  # fmt: skip
        "A character model of tiny-shakespeare, 7.5 times smaller": characters,
    },
    "Images and tables": {"The textbook's cases": other_data, "Small networks on Fashion-MNIST": fashion},
    "Recipes, each one command, with cards": recipes(),
    "Every task once": {"A few steps on real data": lambda: every_task() + "\n\n" + link("scripts")},
    "Latency and operations": {"What is removed is saved": latencies},
    "Beside other tools": {"In one run": peers},
}


def page() -> str:
    """Return RESULTS.md; draws its pictures."""
    parts = [INTRODUCTION]
    for title, sections in SECTIONS.items():
        parts.append(f"## {title}")
        for name, write in sections.items():
            parts += [f"### {name}", write()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    (ROOT / "RESULTS.md").write_text(page(), encoding="utf-8")
