"""Run the built-in recipes and put their cards, records and pictures into model_cards/.

    python scripts/make_gallery.py [--text FILE [--model FOLDER_OR_ID]]    # with a text the language-model recipe too
Numbers are those of the machine that this runs on; nothing else may use it meanwhile.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from hf_compress import run_recipe
from hf_compress.measurement.schema import record_schema

GALLERY = Path(__file__).parents[1] / "model_cards"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--text", help="text file for the language-model recipe")
parser.add_argument("--model", help="language model of that recipe instead of its own")
args = parser.parse_args()
jobs = {"digits": []}
if args.text:
    jobs["language-model"] = [f"task.files.train={args.text}"]
    jobs["language-model"] += [f"stages.dense.source={args.model}"] if args.model else []
for name, settings in jobs.items():
    with tempfile.TemporaryDirectory() as place:
        folder = run_recipe(name, Path(place) / name, overrides=settings)
        target = GALLERY / name
        shutil.rmtree(target, ignore_errors=True)
        (target / "records").mkdir(parents=True)
        for path in sorted(folder.iterdir()):
            if path.suffix in (".md", ".png"):
                shutil.copy2(path, target / path.name)
        for path in sorted((folder / "records").glob("*.json")):
            shutil.copy2(path, target / "records" / path.name)
(GALLERY / "record.schema.json").write_text(json.dumps(record_schema(), indent=2) + "\n")
