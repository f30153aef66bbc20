"""Run the recipes and put their cards, records and pictures into model_cards/.

    python scripts/make_gallery.py digits
    python scripts/make_gallery.py fashion-mnist spoken-digits --data FOLDER --seeds 0 1 2

`digits` and `language-model` are built in (the second takes `--text FILE`); the recipes of the others lie beside their
cards, and FOLDER holds their data as these say. With `--base MODEL` they start from that instead of their own. The
card is that of the first seed; the qualities of all go into seeds.json. Numbers are those of the machine that this
runs on; nothing else may use it meanwhile. Finished stages stay in `--work`, so the script goes on where it stopped.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, set_seed

from hf_compress import run_recipe
from hf_compress.measurement.record import Record
from hf_compress.measurement.schema import record_schema
from hf_compress.recipes.load import load_recipe
from hf_compress.report.tables import is_quality

GALLERY = Path(__file__).parents[1] / "model_cards"
BUILT_IN = ("digits", "language-model")


def untrained_ast(folder: Path) -> Path:
    """Write a small audio spectrogram transformer for a second of sound, with its feature extractor."""
    if not (folder / "config.json").is_file():
        set_seed(0)
        shape = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
        config = ASTConfig(**shape, max_length=100, num_mel_bins=64, time_stride=16, frequency_stride=16)
        ASTForAudioClassification(config).save_pretrained(folder)
        ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=64, max_length=100).save_pretrained(folder)
    return folder


def neighbours(labelled: Path, target: Path) -> Path:
    """Write pairs of sentences that share words and were not paired in `labelled`: two for each sentence."""
    if not target.is_file():
        rows = load_dataset("parquet", data_files=str(labelled))["train"]
        texts = [*rows["sentence1"], *rows["sentence2"]]
        words = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
        alike = (words @ words.T).toarray()
        own = np.arange(len(texts))
        alike[own, own] = alike[own, (own + len(rows)) % len(texts)] = -1
        others = np.argsort(-alike, axis=1)[:, :2]
        pairs = {"sentence1": [t for t in texts for _ in range(2)], "sentence2": [texts[i] for i in others.ravel()]}
        Dataset.from_dict(pairs).to_parquet(target)
    return target


def settings(name: str, args: argparse.Namespace) -> list[str]:
    """Return what a recipe cannot know: where data and base models are on this machine."""
    if name == "language-model":
        return [f"task.files.train={args.text}", *([f"stages.dense.source={args.base}"] if args.base else [])]
    if name in BUILT_IN:
        return []
    recipe = load_recipe(GALLERY / name / "recipe.yaml")
    files = {split: args.data / file for split, file in recipe.task.files.items()}
    if "unlabeled" in files:
        files["unlabeled"] = neighbours(files["train"], args.work / "pairs.parquet")
    found = [f"task.files.{split}={file}" for split, file in files.items()]
    first = recipe.stages[0]
    if args.base:
        found.append(f"stages.{first.name}.source={args.base}")
    elif first.source == "AST_FOLDER":
        found.append(f"stages.{first.name}.source={untrained_ast(args.work / 'ast')}")
    return found


def qualities(folder: Path) -> dict[str, dict[str, float]]:
    """Return the quality numbers of each stage."""
    found = {}
    for path in sorted((folder / "records").glob("*.json")):
        record = Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
        found[record.model] = {m.name: m.value for m in record.measurements if is_quality(m.name)}
    return found


def keep(folder: Path, target: Path) -> None:
    """Copy card, pictures and records over those of an earlier run."""
    for old in [*target.glob("*.md"), *target.glob("*.png"), *target.glob("records/*.json")]:
        old.unlink()
    (target / "records").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".md", ".png"):
            shutil.copy2(path, target / path.name)
    for path in sorted((folder / "records").glob("*.json")):
        shutil.copy2(path, target / "records" / path.name)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--base", help="model that recipes start from, instead of their own")
    parser.add_argument("--text", help="text file for the language-model recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("gallery"), help="folder for the models")
    args = parser.parse_args()
    for name in args.names:
        target, found = GALLERY / name, {}
        for seed in args.seeds:
            place = args.work / f"{name}-{seed}"
            recipe = name if name in BUILT_IN else str(target / "recipe.yaml")
            folder = run_recipe(recipe, place, overrides=[*settings(name, args), f"seed={seed}"])
            found[seed] = qualities(folder)
            if seed == args.seeds[0]:
                keep(folder, target)
        if len(args.seeds) > 1:
            (target / "seeds.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (GALLERY / "record.schema.json").write_text(json.dumps(record_schema(), indent=2) + "\n")


if __name__ == "__main__":
    main()
