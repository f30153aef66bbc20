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
    made.add_argument("--test", action="store_true", help="score on what nothing was chosen by")
    return made


def train(model, output, data, settings, **compression):
    """Train and write the weights to `output`, or read them if they are there; a plain module has nothing else."""
    arguments = TrainingArguments(
        str(output / "run"), num_train_epochs=6, lr_scheduler_type="cosine", seed=0, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=200, **settings,
    )  # fmt: skip
    if not (output / "saved").exists():
        trainer = CompressionTrainer(model, arguments, train_dataset=data, **compression)
        trainer.train()
        trainer.save_compressed(output / "saved")
    load_model(model, output / "saved/model/model.safetensors")
    return model.eval()


def report(models, folder, **options):
    """Measure, write the records to `folder` and print them as a table."""
    command = f"python {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    print(compare_table(measure(models, seed=0, output_dir=folder, command=command, **options)))
