"""What the language-model benchmarks share: WikiText-2 in a vocabulary of 8192, and a small Llama trained on it.

python scripts/wikitext.py --data WIKITEXT2_FOLDER --output llama
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_compress.recipes.stages import fast_arguments

SHAPE = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def parser(doc, learning_rate):
    """Return the options that the benchmarks have in common."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--split", default="validation")
    made.add_argument("--length", type=int, default=256)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--learning-rate", type=float, default=learning_rate)
    return made


def texts(data, split):
    """Return the lines of a split as one text."""
    return "".join(load_dataset("parquet", data_files=str(Path(data) / f"{split}.parquet"))["train"]["text"])


def make_tokenizer(text, size=8192):
    """Return a byte-level BPE tokenizer learnt from `text`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def packed(tokenizer, text, length=256):
    """Return the tokens of `text` as rows of `length`; labels are the inputs."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = ids[: len(ids) // length * length].view(-1, length).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


def distil(model, args, tokenizer, text, steps, seed, pruning=None, quantization=None):
    """Train for some steps on the text, with the dense model (`args.model`) as teacher."""
    from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig

    arguments = TrainingArguments(
        str(args.output.with_suffix(".run")), max_steps=steps, per_device_train_batch_size=16, seed=seed,
        learning_rate=args.learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05,
        **fast_arguments() | {"save_strategy": "no", "logging_steps": 100},
    )  # fmt: skip
    terms = DistillationConfig(temperature=1.0, task_weight=0.1, logit_weight=0.9)
    trainer = CompressionTrainer(
        model, arguments, train_dataset=packed(tokenizer, text, args.length), data_collator=default_data_collator,
        teacher=args.model, compression=CompressionConfig(terms, pruning, quantization),
    )  # fmt: skip
    trainer.train()


def table(args, cases, run):
    """Fill in the runs that are missing, `run(case, seed)` for each, and write after each."""
    from hf_compress.measurement.environment import environment

    found = json.loads(args.output.read_text())["runs"] if args.output.is_file() else {}
    for seed in args.seeds:
        for case in cases:
            if str(seed) in found.setdefault(case, {}):
                continue
            found[case][str(seed)] = run(case, seed)
            print(case, seed, found[case][str(seed)], flush=True)
            settings = {k: v for k, v in vars(args).items() if k not in ("model", "data", "output", "cases")}
            place = {**environment(), "bf16": fast_arguments()["bf16"]}
            content = {"settings": settings, "environment": place, "runs": found}
            args.output.write_text(json.dumps(content, indent=2))
    return found


def main():
    """Train the dense model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=1600)
    args = parser.parse_args()
    set_seed(0)
    text = texts(args.data, "train")
    tokenizer = make_tokenizer(text)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SHAPE))
    arguments = TrainingArguments(
        f"{args.output}.run", max_steps=args.steps, per_device_train_batch_size=16, learning_rate=2e-3,
        lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.1, **fast_arguments(),
    )  # fmt: skip
    rows = packed(tokenizer, text)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=any(Path(arguments.output_dir).glob("checkpoint-*")) or None)
    trainer.model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
