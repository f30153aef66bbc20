"""The verbs of `hf-compress` that make a model smaller without training.

Level: outside.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError
from hf_compress.options import read_text
from hf_compress.output import free_folder, whole_folder
from hf_compress.pruning.oneshot.config import SCOPES, OneShotConfig


def add_prune(verbs: Any, add_verb: Any) -> None:
    """Add `prune`."""
    parser = add_verb(
        verbs, "prune", "prune a saved model without training: single weights, or whole units with --keep", _prune
    )
    parser.add_argument("model", help="a folder or a Hub id; single weights: one block is in memory at a time")
    parser.add_argument("output", help="folder to make; an interrupted run goes on there at the next block")
    parser.add_argument("--text", required=True, help="a text file that is like what the model is used on")
    parser.add_argument("--sparsity", type=float, help="fraction of the weights that become zero")
    parser.add_argument("--structure", default="unstructured", help="unstructured (default), or N:M such as 2:4")
    parser.add_argument("--criterion", help="sparsegpt (default), wanda, ria, magnitude; units: fisher (default) ...")
    parser.add_argument("--scope", default="uniform", choices=SCOPES, help="default: uniform")
    parser.add_argument("--refine", type=int, help="steps that fit the weights that are left; sparsegpt: default 20")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="UNIT=AMOUNT",
        help="units that stay instead: ffn, heads, hidden, filters: a number, or a fraction below 1; layers: a number",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=128, help="rows of text; default 128")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row; default 512")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the rows; default 0")


def _prune(arguments: argparse.Namespace) -> None:
    config = OneShotConfig(
        sparsity=arguments.sparsity,
        structure=arguments.structure,
        criterion=arguments.criterion,
        scope=arguments.scope,
        refine=arguments.refine,
        keep=_amounts(arguments.keep),
    )
    text = read_text(arguments.text)
    from transformers import AutoTokenizer

    from hf_compress.architecture.loading import refusing
    from hf_compress.measurement.load import load_model
    from hf_compress.pruning.oneshot.api import prune_oneshot
    from hf_compress.pruning.oneshot.calibration import Calibration, calibration_batches
    from hf_compress.pruning.oneshot.processes import launched

    with refusing(ConfigError, f"the tokenizer of {arguments.model}"):
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    sizes = {"samples": arguments.samples, "length": arguments.length, "seed": arguments.seed}
    batches = calibration_batches(text, tokenizer, **sizes)
    rank, folder = 0, Path(arguments.output)
    if config.keep:
        with whole_folder(free_folder(folder)) as part:
            prune_oneshot(load_model(arguments.model), config, batches, part)
            tokenizer.save_pretrained(part)
    else:
        with launched() as (rank, processes):
            rows = sum(len(batch["input_ids"]) for batch in batches)
            settings = {**batches.settings, "samples": rows, "processes": processes}
            own = Calibration(batches[rank::processes], settings)
            prune_oneshot(arguments.model, config, own, folder)
        if rank == 0 and not (folder / "tokenizer_config.json").is_file():
            # It was not among the files of the source, which are copied.
            tokenizer.save_pretrained(folder)
    if rank == 0:
        print(folder)


def _amounts(pairs: Sequence[str]) -> dict[str, Any]:
    """Return what stays by kind of unit; UNIT.FIELD=AMOUNT is one of several fields of the config."""
    found: dict[str, Any] = {}
    for name, amount in map(_amount, pairs):
        unit, _, field = name.partition(".")
        if field and isinstance(found.setdefault(unit, {}), dict):
            found[unit][field] = amount
        else:
            found[name] = amount
    return found


def _amount(pair: str) -> tuple[str, int | float]:
    name, found, value = pair.partition("=")
    try:
        return name, float(value) if "." in value else int(value)
    except ValueError as error:
        wanted = "a number or a fraction" if found else "UNIT=AMOUNT"
        raise ConfigError(f"--keep: expected {wanted}, such as ffn=0.5, found {pair!r}") from error


def add_shrink(verbs: Any, add_verb: Any) -> None:
    """Add `shrink`."""
    parser = add_verb(verbs, "shrink", "remove units of a saved model, the weakest or those that are zero", _shrink)
    parser.add_argument("model", help="a folder or a Hub id")
    parser.add_argument("output", help="folder to make")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="UNIT=AMOUNT",
        help="ffn, heads, hidden, filters: a number, or a fraction below 1; layers: a number, of a model with two "
        "stacks layers.FIELD=AMOUNT for each field of its config; none: drop what is zero",
    )  # fmt: skip
    parser.add_argument("--multiple", type=int, default=1, help="what fractions are rounded to; default 1")
    parser.add_argument("--vocabulary", metavar="FILE", help="keep only the tokens that this text file needs")


def _shrink(arguments: argparse.Namespace) -> None:
    keep = _amounts(arguments.keep)
    unknown = sorted(set(keep) - {"ffn", "heads", "hidden", "filters", "layers"})
    if unknown:
        raise ConfigError(f"--keep: expected ffn, heads, hidden, filters or layers, found {', '.join(unknown)}")
    folder = free_folder(arguments.output)
    text = read_text(arguments.vocabulary) if arguments.vocabulary else ""
    from hf_compress.architecture.shrink import shrink
    from hf_compress.architecture.vocabulary import shrink_vocabulary
    from hf_compress.measurement.load import load_model

    model = load_model(arguments.model)
    processor = _processor(arguments.model)
    if keep or not text:
        model = shrink(model, multiple=arguments.multiple, **keep)
    if text:
        smaller = shrink_vocabulary(model, processor, text.splitlines())
        model, processor = smaller.model, smaller.tokenizer
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        if processor is not None:
            processor.save_pretrained(part)
    print(folder)


def _processor(source: str) -> Any:
    """Return the tokenizer or image processor that is saved beside a model, if there is one."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None
