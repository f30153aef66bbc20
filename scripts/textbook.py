"""What the textbook's cases share: training of a plain module, and what is said of the three that come out."""

import argparse
import sys
from pathlib import Path

from safetensors.torch import load_model
from transformers import TrainingArguments

from hf_compress import CompressionTrainer, measure
from hf_compress.report.tables import compare_table


def parser(doc):
    """Return the options that all have."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--test", action="store_true", help="score on what nothing was chosen by")
    return made


def train(model, output, data, settings, **compression):
    """Train and write the weights to `output`, or read them if they are there; a plain module has nothing else."""
    common = {"num_train_epochs": 6, "lr_scheduler_type": "cosine", "save_strategy": "no"}
    common |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 200}
    arguments = TrainingArguments(str(output / "run"), **common | settings)
    if not (output / "saved").exists():
        trainer = CompressionTrainer(model, arguments, train_dataset=data, **compression)
        trainer.train()
        trainer.save_compressed(output / "saved")
    load_model(model, output / "saved/model/model.safetensors")
    return model.eval()


def report(models, folder, args, **options):
    """Measure, write the records to `folder` and print them as a table."""
    command = f"python {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    print(compare_table(measure(models, seed=args.seed, output_dir=folder, command=command, **options)))
