"""`hf-compress`: parse, make one call, print text or one JSON.

Level: outside. torch is imported by the call, never by `--help`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_compress import __version__
from hf_compress.cli_prune import add_prune, add_shrink
from hf_compress.cli_quantize import add_export, add_quantize
from hf_compress.cli_search import add_fit, add_sensitivity, add_sweep
from hf_compress.errors import ConfigError, HfCompressError

DESCRIPTION = "Distil, prune, shrink, quantize, measure and push Hugging Face models."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 refused or failed, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="hf-compress", description=DESCRIPTION)
    add_verbs(parser)
    return call_verb(parser.parse_args(argv), parser.prog)


def call_verb(arguments: argparse.Namespace, program: str) -> int:
    """Do what was parsed; returns the exit status of `main`. `program` is what errors name as their origin."""
    # bitsandbytes repeats its warning on casts at every forward pass of every int8 layer.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        arguments.call(arguments)
    except (HfCompressError, OSError) as error:
        # transformers and datasets say with an OSError that a Hub id or folder cannot be loaded.
        print(f"{program} {arguments.verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program} {arguments.verb}: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Give `parser` all verbs: `hf-compress`'s own one, or the one that another command line sets aside."""
    parser.add_argument("--version", action="version", version=f"hf_compress {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_add_run, _add_inspect):
        add(verbs)
    for add_smaller in (add_shrink, add_prune, add_quantize, add_export, add_sensitivity, add_sweep, add_fit):
        add_smaller(verbs, _verb)
    for add in (_add_measure, _add_compare, _add_card, _add_push):
        add(verbs)


def _verb(verbs: Any, name: str, summary: str, call: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(call=call)
    return parser


def _print(result: Any, as_json: bool, text: str | None = None) -> None:
    print(json.dumps(result, indent=2) if as_json else text if text is not None else result)


def _add_run(verbs: Any) -> None:
    parser = _verb(verbs, "run", "run a recipe, or go on with one that was interrupted", _run)
    parser.add_argument("recipe", help="a YAML file, or the name of a built-in recipe (digits, language-model)")
    parser.add_argument("--output-dir", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override an option, e.g. --set stages.teacher.arguments.max_steps=10; repeatable",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> None:
    from hf_compress.recipes.recipe import run_recipe

    folder = run_recipe(arguments.recipe, arguments.output_dir, overrides=arguments.overrides)
    print(f"{folder}: README.md is the card, records/ has every number")


def _add_inspect(verbs: Any) -> None:
    parser = _verb(verbs, "inspect", "say what can be removed from a model and still load plainly", _inspect)
    parser.add_argument("model", help="a folder or a Hub id; only its config is read")
    parser.add_argument("--latency", action="store_true", help="build the smaller sizes and time them on this CPU")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _inspect(arguments: argparse.Namespace) -> None:
    from hf_compress.architecture.capability import inspect_model

    report = inspect_model(arguments.model, latency=arguments.latency)
    _print(report.to_dict(), arguments.json, report.to_text())


def _add_measure(verbs: Any) -> None:
    parser = _verb(verbs, "measure", "measure saved models beside each other; the first is the baseline", _measure)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, or NAME=FOLDER")
    parser.add_argument("--recipe", help="take task and data for the quality from this recipe")
    parser.add_argument("--lm-eval", nargs="+", default=[], metavar="TASK", help="tasks of lm-eval for the quality")
    parser.add_argument("--lm-eval-folder", help="folder with tasks of your own instead of lm-eval's")
    parser.add_argument("--lm-eval-limit", type=int, help="samples of each task (default: all)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32], metavar="N", help="default: 1 32")
    parser.add_argument("--length", type=int, help="tokens per text, audio samples or image side when timing")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (a process a model)")
    parser.add_argument("--output-dir", help="write a record per model here")
    parser.add_argument("--json", action="store_true", help="print the records")


def _measure(arguments: argparse.Namespace) -> None:
    from hf_compress.measurement.api import measure
    from hf_compress.report.compare import compare

    quality: dict[str, Any] = {}
    models = _named(arguments.models)
    if arguments.recipe is not None:
        from hf_compress.recipes.load import load_recipe
        from hf_compress.recipes.tasks import build_task

        task = build_task(load_recipe(arguments.recipe).task, next(iter(models.values())))
        quality = {"evaluate": task.evaluate, "dataset": task.dataset}
    if arguments.lm_eval:
        quality = _harness(arguments)
    records = measure(
        models,
        batch_sizes=arguments.batch_sizes,
        length=arguments.length,
        memory=not arguments.no_memory,
        output_dir=arguments.output_dir,
        command="hf-compress measure",
        **quality,
    )
    _print([r.to_dict() for r in records], arguments.json, compare(records))


def _harness(arguments: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from hf_compress.measurement.harness import harness_metrics

    if arguments.recipe is not None:
        raise ConfigError("give --recipe or --lm-eval for the quality, not both")
    first = next(iter(_named(arguments.models).values()))
    tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=False)
    options = {"include_path": arguments.lm_eval_folder, "limit": arguments.lm_eval_limit}
    source = {"id": "lm-eval", "tasks": list(arguments.lm_eval), "samples": arguments.lm_eval_limit}
    return {"evaluate": harness_metrics(tokenizer, arguments.lm_eval, **options), "dataset": source}


def _named(models: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for given in models:
        name, is_named, folder = given.partition("=")
        if not is_named or Path(given).exists():
            name, folder = Path(given).resolve().name, given
        if name in found:
            raise ConfigError(f"two models are called {name!r}; give each a name of its own: NAME=FOLDER")
        found[name] = folder
    return found


def _add_compare(verbs: Any) -> None:
    parser = _verb(verbs, "compare", "print the table of records, and draw quality against size and latency", _compare)
    parser.add_argument("records", help="folder of records (*.json), or of a run")
    parser.add_argument("--output-dir", help="write comparison.md and the pictures here")


def _compare(arguments: argparse.Namespace) -> None:
    from hf_compress.report.compare import compare

    print(compare(_records_folder(arguments.records), arguments.output_dir))


def _records_folder(place: str) -> Path:
    inner = Path(place) / "records"
    return inner if inner.is_dir() else Path(place)


def _add_card(verbs: Any) -> None:
    parser = _verb(verbs, "card", "write the model card of a model folder from records", _card)
    parser.add_argument("folder", help="the model folder; README.md goes there")
    parser.add_argument("records", help="folder of records (*.json), or of a run")
    parser.add_argument("--name", help="model name (default: the folder's)")
    parser.add_argument("--base-model", help="Hub id of what the model was made from")
    parser.add_argument("--license", help="licence id, e.g. apache-2.0")
    parser.add_argument("--language", nargs="+", default=[], help="language codes")
    parser.add_argument("--datasets", nargs="+", default=[], help="Hub ids of the training data")
    parser.add_argument("--related", nargs="+", default=[], help="Hub ids of the same model in other forms")
    parser.add_argument("--pictures", nargs="+", default=[], help="PNG files to show")


def _card(arguments: argparse.Namespace) -> None:
    from hf_compress.hub.base import with_base_facts
    from hf_compress.hub.card import create_card
    from hf_compress.hub.config import CardInfo
    from hf_compress.measurement.record import load_records

    info = CardInfo(
        model_name=arguments.name or Path(arguments.folder).resolve().name,
        base_model=arguments.base_model,
        license=arguments.license,
        language=tuple(arguments.language),
        datasets=tuple(arguments.datasets),
        related=tuple(arguments.related),
    )
    info = with_base_facts(info)
    records = load_records(_records_folder(arguments.records))
    print(create_card(arguments.folder, records, info=info, pictures=arguments.pictures))


def _add_push(verbs: Any) -> None:
    parser = _verb(verbs, "push", "upload a model folder in one commit, without pickles, tokens or home paths", _push)
    parser.add_argument("folder", help="the model folder")
    parser.add_argument("repo_id", help="NAME or OWNER/NAME")
    parser.add_argument("--quantized", metavar="FOLDER", help="push this too, to REPO_ID-NAME, and link the two")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be sent")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repo private")
    parser.add_argument("--revision", help="branch to commit to")
    parser.add_argument("--message", help="title of the commit")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument("--tag", help="name for the commit, such as v1")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _push(arguments: argparse.Namespace) -> None:
    from hf_compress.hub.pair import push_pair
    from hf_compress.hub.push import push

    options = {
        "private": arguments.private,
        "revision": arguments.revision,
        "commit_message": arguments.message,
        "create_pr": arguments.create_pr,
        "tag": arguments.tag,
        "dry_run": arguments.dry_run,
    }
    if arguments.quantized is None:
        result = push(arguments.folder, arguments.repo_id, **options)
        _print(result.to_dict(), arguments.json, result.to_text())
        return
    pair = push_pair(arguments.folder, arguments.quantized, arguments.repo_id, **options)
    _print([r.to_dict() for r in pair], arguments.json, "\n".join(r.to_text() for r in pair))


if __name__ == "__main__":
    raise SystemExit(main())
