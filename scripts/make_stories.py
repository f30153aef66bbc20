"""Write text that a language model makes up, to distil from it where its training text is not at hand.

    python scripts/make_stories.py --model FOLDER_OR_ID --output FOLDER --test STORIES.parquet
FOLDER gets train.parquet and validation.parquet of such text, and test.parquet, the column `text` of STORIES.parquet.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--test", required=True)
parser.add_argument("--count", type=int, default=3000)
parser.add_argument("--length", type=int, default=256)
args = parser.parse_args()
set_seed(0)
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
texts = []
while len(texts) < args.count:
    begin = torch.full((250, 1), tokenizer.bos_token_id)
    with torch.inference_mode():
        made = model.generate(begin, do_sample=True, top_k=0, max_length=args.length, pad_token_id=0)
    texts += [tokenizer.decode(row, skip_special_tokens=True) + "\n" for row in made]
    print(f"{len(texts)} of {args.count}", flush=True)
args.output.mkdir(parents=True, exist_ok=True)
held_out = len(texts) // 20
for name, rows in (("validation", texts[:held_out]), ("train", texts[held_out:])):
    Dataset.from_dict({"text": rows}).to_parquet(args.output / f"{name}.parquet")
given = load_dataset("parquet", data_files=args.test)["train"]
given.select_columns("text").to_parquet(args.output / "test.parquet")
