"""What the training scripts share: options, the model to start from, and the way from a Trainer to a finished folder.

Level: outside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import HfArgumentParser, TrainingArguments

from hf_compress.config import CompressionConfig
from hf_compress.errors import ConfigError, UnsupportedError
from hf_compress.measurement.record import Record
from hf_compress.options import read_data_file
from hf_compress.output import free_folder
from hf_compress.recipes.config import TaskConfig
from hf_compress.recipes.task import Task, model_for
from hf_compress.recipes.tasks import build_task
from hf_compress.training.setup import is_zero3

# Options of a script -> section and option of a CompressionConfig.
_FLAGS = {
    "sparsity": ("pruning", "sparsity"),
    "structure": ("pruning", "structure"),
    "criterion": ("pruning", "criterion"),
    "temperature": ("distillation", "temperature"),
    "logit_weight": ("distillation", "logit_weight"),
    "hidden_weight": ("distillation", "hidden_weight"),
    "quantization": ("quantization", "scheme"),
}


@dataclass
class ScriptOptions:
    """Options of every training script; each script adds the columns of its task."""

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of the model to start from"})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder of the model to learn from"})
    layers: int | None = field(default=None, metadata={"help": "start with so many layers of MODEL, evenly spread"})
    dataset: str | None = field(default=None, metadata={"help": "Hub id or folder of a dataset, instead of files"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration name of the Hub dataset"})
    revision: str | None = field(default=None, metadata={"help": "revision of the Hub dataset"})
    train_file: str | None = field(default=None, metadata={"help": "parquet, csv, json or txt file"})
    validation_file: str | None = field(
        default=None, metadata={"help": "looked at while training; default: a tenth of the training rows"}
    )
    test_file: str | None = field(default=None, metadata={"help": "what the results are reported on"})
    unlabeled_file: str | None = field(
        default=None, metadata={"help": "text-classification: further text to learn from the teacher on"}
    )
    train_split: str | None = field(default=None, metadata={"help": "split of DATASET to train on; default: train"})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "split of DATASET looked at in training; default: validation, or a tenth of the training rows"
        },
    )
    test_split: str | None = field(
        default=None, metadata={"help": "split of DATASET that the results are reported on; default: test"}
    )
    max_samples: int | None = field(default=None, metadata={"help": "use at most so many samples of each split"})
    compression: str | None = field(
        default=None, metadata={"help": "YAML or JSON of a CompressionConfig; the options below override it"}
    )
    sparsity: float | None = field(default=None, metadata={"help": "prune gradually to this fraction of zeros, 0-1"})
    structure: str | None = field(
        default=None, metadata={"help": "what is pruned: unstructured, 2:4, block:4x1, ffn, heads, hidden, layers ..."}
    )
    criterion: str | None = field(default=None, metadata={"help": "magnitude, movement, platon, taylor ..."})
    temperature: float | None = field(default=None, metadata={"help": "softmax temperature of the distillation"})
    logit_weight: float | None = field(default=None, metadata={"help": "weight of the teacher's logits in the loss"})
    hidden_weight: float | None = field(default=None, metadata={"help": "weight of the teacher's hidden states"})
    quantization: str | None = field(
        default=None, metadata={"help": "write a quantized copy too: int8, nf4, fp4, torchao-int8 ..."}
    )
    measure: bool = field(
        default=False, metadata={"help": "measure size and speed before and after; --push_to_hub does it too"}
    )
    recipe: str | None = field(
        default=None, metadata={"help": "run this recipe (hf-compress run) instead; only --output_dir goes with it"}
    )

    def build(self, type: str, arguments: TrainingArguments, **options: Any) -> Task:
        """Load data and processor of a task; one process after another, so that all read what the first has cached.

        Args:
            type: name of the task.
            arguments: of the training.
            **options: of the `TaskConfig`.

        Raises:
            ConfigError: if there is no model, or data from two places.
            DataError: if the data are not as the task needs them.
        """
        if self.model is None:
            raise ConfigError("--model is missing: the Hub id or folder of the model to start from")
        # Refused now, not after training.
        self.compress()
        free_folder(Path(str(arguments.output_dir)) / "compressed")
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        files["unlabeled"] = self.unlabeled_file
        files = {split: file for split, file in files.items() if file is not None}
        if "test" not in files and "validation" in files:
            # The results need rows of their own; choices are made on a tenth of the training rows then.
            files["test"] = files.pop("validation")
        splits = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
        config = TaskConfig(
            type=type,
            dataset=self.dataset,
            dataset_config=self.dataset_config,
            revision=self.revision,
            files=files,
            splits={name: split for name, split in splits.items() if split is not None},
            max_samples=self.max_samples,
            **options,
        )
        with arguments.main_process_first():
            return build_task(config, self.model)

    def load_model(self, task: Task) -> Any:
        """Return the model to start from, with a head for the labels of the task."""
        from hf_compress.architecture.shrink import shrink

        model = model_for(task, str(self.model))
        return model if self.layers is None else shrink(model, layers=self.layers)

    def compress(self) -> dict[str, Any]:
        """Return `compression` and `teacher` of a Trainer: the file's, overridden by the other options.

        Raises:
            ConfigError: with every problem of the configuration.
        """
        data: dict[str, Any] = {} if self.compression is None else read_data_file(self.compression)
        if not isinstance(data, Mapping):
            raise ConfigError(f"{self.compression} must hold distillation, pruning or quantization")
        data = {section: dict(options) for section, options in data.items() if options is not None}
        for name, (section, option) in _FLAGS.items():
            if getattr(self, name) is not None:
                data.setdefault(section, {})[option] = getattr(self, name)
        if self.teacher is not None:
            data.setdefault("distillation", {})
        return {"compression": CompressionConfig.from_dict(data) if data else None, "teacher": self.teacher}


SomeOptions = TypeVar("SomeOptions", bound=ScriptOptions)
SomeArguments = TypeVar("SomeArguments", bound=TrainingArguments)


def parse(
    options: type[SomeOptions], arguments: type[SomeArguments], argv: Sequence[str] | None = None
) -> tuple[SomeOptions, SomeArguments]:
    """Read the command line of a script; with --recipe run that and exit.

    Args:
        options: of the script.
        arguments: of the Trainer.
        argv: what to read; None: the command line.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--recipe")
    early.add_argument("--output_dir")
    found, others = early.parse_known_args(argv)
    if found.recipe is not None:
        from hf_compress.recipes.recipe import run_recipe

        if others:
            raise ConfigError(f"--recipe says everything but --output_dir, found {' '.join(others)}")
        run_recipe(found.recipe, found.output_dir)
        sys.exit(0)
    one, other = HfArgumentParser((options, arguments)).parse_args_into_dataclasses(argv)
    return one, other


def run(trainer: Any, task: Task, options: ScriptOptions) -> dict[str, dict[str, float]]:
    """Train, and write the finished model to OUTPUT_DIR/compressed, its quality before and after to results.json.

    Args:
        trainer: a `CompressionTrainer` or its kin.
        task: data and metrics.
        options: of the script.

    Returns:
        The metrics on the test split by model: "start", "model" and, if there is one, "quantized"; on the main
        process only, which is the one that measures.

    Raises:
        OutputExistsError: if OUTPUT_DIR/compressed holds something; nothing was trained then.
    """
    output = Path(trainer.args.output_dir)
    measures, is_main = options.measure or trainer.args.push_to_hub, trainer.is_world_process_zero()
    results = {}
    if is_zero3():
        raise UnsupportedError(
            "the model is measured before and after training, which needs whole weights: ZeRO stage 3 has shared them "
            "out; take ZeRO stage 2 or FSDP 2"
        )
    if is_main:
        results["start"] = task.evaluate(trainer.model)
        if measures:
            trainer.model.save_pretrained(output / "start")
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    folders = trainer.save_compressed(output / "compressed")
    if is_main:
        results |= _report(trainer, task, folders, measures)
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for name, metrics in results.items():
            print(f"{name:10}" + "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items()))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return results


def _report(trainer: Any, task: Task, folders: Mapping[str, Path], measures: bool) -> dict[str, dict[str, float]]:
    from hf_compress.measurement.api import measure
    from hf_compress.measurement.load import load_model
    from hf_compress.report.compare import compare
    from hf_compress.report.tables import is_quality

    if not measures:
        return {name: task.evaluate(load_model(folder)) for name, folder in folders.items()}
    output, compression = Path(trainer.args.output_dir), trainer.compression
    method = {} if compression is None else compression.to_dict(defaults=False)
    records = measure(
        {"start": output / "start", **folders},
        evaluate=task.evaluate,
        dataset=task.dataset,
        seed=trainer.args.seed,
        command=Path(sys.argv[0]).name,
        methods={name: {**method, "training": {"steps": trainer.state.global_step}} for name in folders},
        output_dir=output / "records",
    )
    print(compare(records, output))
    if trainer.args.push_to_hub:
        _push(trainer, task, records, folders)
    return {r.model: {m.name: m.value for m in r.measurements if is_quality(m.name)} for r in records}


def _push(trainer: Any, task: Task, records: Sequence[Record], folders: Mapping[str, Path]) -> None:
    """Write the cards and send the finished model, and its quantized copy to a repo beside it."""
    from hf_compress.hub.card import create_card
    from hf_compress.hub.config import CardInfo
    from hf_compress.hub.pair import push_pair
    from hf_compress.hub.push import push

    args = trainer.args
    repo_id = args.hub_model_id or Path(args.output_dir).absolute().name
    for name, folder in folders.items():
        roles = {"start": "baseline", name: "result"}
        shown = [dataclasses.replace(r, role=roles[r.model]) for r in records if r.model in roles]
        create_card(folder, shown, info=CardInfo(repo_id.split("/")[-1], pipeline_tag=task.pipeline_tag))
    where = {"token": args.hub_token, "private": args.hub_private_repo, "revision": args.hub_revision}
    if "quantized" in folders:
        sent: Sequence[Any] = push_pair(folders["model"], folders["quantized"], repo_id, **where)
    else:
        sent = (push(folders["model"], repo_id, **where),)
    print("\n".join(result.to_text() for result in sent))
