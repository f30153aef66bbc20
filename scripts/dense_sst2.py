"""The dense model that the SST-2 benchmarks start from: MiniLM fine-tuned on phrases, then on whole sentences.

    python scripts/dense_sst2.py --data sst2 --sentences sst2_sentences --model MINILM --work FOLDER --output out.json

SST-2's training split is phrases cut from sentences; 2,000 are put aside. Those that are whole, by the training split
of the sentences alone, are learnt once more. Each stage is train_text_classification.py as a user would run it. With
more seeds the second stage runs as often from one first stage, and the mean of their weights is scored too (Wortsman
et al., arXiv:2203.05482, "uniform soup"). The model is WORK/sentences-SEED/compressed/model, or WORK/mean. Finished
stages are kept, so it goes on where it was stopped. Accuracy is that of the validation sentences.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_compress.measurement.environment import environment
from hf_compress.recipes.stages import fast_arguments

SHORTEST = 4
COMMON = "--text_columns sentence --num_train_epochs 2 --per_device_train_batch_size 32 --warmup_steps 0.06"
COMMON += " --weight_decay 0.01 --train_sampling_strategy group_by_length --save_strategy no --report_to none"
RATES = {"phrases": "1e-4", "sentences": "3e-5"}


def letters(text: str) -> str:
    """Return a text without spaces and signs, which the two datasets write differently."""
    return "".join(c for c in text.lower() if c.isalnum())


def write_data(args: argparse.Namespace) -> dict[str, Path]:
    """Write the rows of each stage, and those put aside, and return the files."""
    files = {name: args.work / f"{name}.parquet" for name in (*RATES, "aside")}
    if not all(path.is_file() for path in files.values()):
        rows = load_dataset("parquet", data_files=str(args.data / "train.parquet"))["train"]
        rows = rows.train_test_split(2000, seed=0)
        whole = load_dataset("parquet", data_files=str(args.sentences / "train.parquet"))["train"]
        known = {letters(text) for text in whole["sentence"]}
        long_enough = rows["train"].filter(lambda r: len(r["sentence"].split()) >= SHORTEST)
        rows["train"].to_parquet(files["phrases"])
        long_enough.filter(lambda r: letters(r["sentence"]) in known).to_parquet(files["sentences"])
        rows["test"].to_parquet(files["aside"])
    return files


def train(args: argparse.Namespace, model: str | Path, stage: str, seed: int) -> Path:
    """Run a stage unless it is finished, and return its folder."""
    files, folder = write_data(args), args.work / f"{stage}-{seed}"
    if not (folder / "results.json").is_file():
        script = Path(__file__).with_name("train_text_classification.py")
        command = [sys.executable, str(script), "--model", str(model), "--output_dir", str(folder)]
        command += ["--train_file", str(files[stage]), "--validation_file", str(files["aside"])]
        command += ["--test_file", str(args.data / "validation.parquet"), *COMMON.split()]
        command += ["--learning_rate", RATES[stage], "--seed", str(seed)]
        for name in ("use_cpu", "bf16"):
            command += [f"--{name}", str(fast_arguments()[name])]
        subprocess.run(command, check=True)
    return folder


def mean(folders: list[Path], target: Path) -> None:
    """Write a model whose weights are the means of others'."""
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders]
    with torch.no_grad():
        for weights in zip(*(m.parameters() for m in models), strict=True):
            weights[0].copy_(torch.stack(weights).mean(0))
    models[0].save_pretrained(target)
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(target)


@torch.inference_mode()
def accuracy(folder: Path, file: Path) -> float:
    """Return the fraction of right answers of a model in float32."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    rows, right = load_dataset("parquet", data_files=str(file))["train"], 0
    for batch in rows.iter(64):
        inputs = tokenizer(batch["sentence"], padding=True, truncation=True, max_length=128, return_tensors="pt")
        right += int((model(**inputs).logits.argmax(-1) == torch.tensor(batch["label"])).sum())
    return right / len(rows)


def main() -> None:
    """Train what is missing, score all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="SST-2: train.parquet and validation.parquet")
    parser.add_argument("--sentences", type=Path, required=True, help="train.parquet of whole sentences alone")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and models")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="the first is that of the first stage too")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    first = train(args, args.model, "phrases", args.seeds[0]) / "compressed" / "model"
    models = {f"phrases | seed {args.seeds[0]}": first}
    for seed in args.seeds:
        models[f"sentences | seed {seed}"] = train(args, first, "sentences", seed) / "compressed" / "model"
    if len(args.seeds) > 1:
        models["mean"] = args.work / "mean"
        mean([folder for name, folder in models.items() if name.startswith("sentences")], models["mean"])
    files = {"validation": args.data / "validation.parquet", "aside": write_data(args)["aside"]}
    found = {name: {n: accuracy(folder, file) for n, file in files.items()} for name, folder in models.items()}
    content = {"settings": {"seeds": args.seeds, "options": COMMON, "learning_rates": RATES}, "accuracy": found}
    args.output.write_text(
        json.dumps({**content, "environment": environment(), "bf16": fast_arguments()["bf16"]}, indent=1)
    )
    for name, scores in found.items():
        print(f"{name:25}" + "  ".join(f"{n} {100 * v:.2f} %" for n, v in scores.items()))


if __name__ == "__main__":
    main()
