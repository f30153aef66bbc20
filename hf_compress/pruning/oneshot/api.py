"""`prune_oneshot`: a model pruned without training, in memory, or from folder to folder one block at a time.

Level: state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.per_layer import save_per_layer
from hf_compress.errors import ConfigError, OutputExistsError, TargetError
from hf_compress.output import full_disk_explained, whole_folder
from hf_compress.pruning.oneshot.blocks import WHOLE, Activations, Walk, find_blocks, in_order
from hf_compress.pruning.oneshot.calibration import check_batches
from hf_compress.pruning.oneshot.config import OneShotConfig
from hf_compress.pruning.oneshot.matrices import Place, find_places
from hf_compress.pruning.oneshot.processes import adder, process_rank, wait_for_all
from hf_compress.pruning.oneshot.prune import BlockPruner, check_groups, criterion_of
from hf_compress.pruning.oneshot.stream import Output, StreamedModel, refuse_whole
from hf_compress.pruning.oneshot.taps import Batch
from hf_compress.pruning.oneshot.units import check_units, prune_units


def prune_oneshot(
    model: Any,
    config: OneShotConfig,
    calibration: Sequence[Batch],
    output: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
) -> Any:
    """Prune a model without training, from what passes through it on some batches.

    Single weights (`sparsity`, N:M) become zero block by block, each block seeing what the pruned ones before it make,
    and what stands outside of the blocks stays dense; whole units (`keep`) are removed. On several processes, each
    gives batches of its own and all get the same result.

    Args:
        model: a transformers model; or a folder or Hub id, of which one block is in memory at a time (single weights).
        config: what goes.
        calibration: batches of inputs, such as `calibration_batches` makes; for units with labels where there are any.
        output: folder to save to; needed for a folder or id. An interrupted run from folder to folder goes on there at
            the next block.
        device: where a folder or id is run; default the GPU if there is one.

    Returns:
        The model (single weights: the same object, changed in place; units: a new one), or the path of `output` for a
        folder or id. A saved result has oneshot.json: for each matrix its sparsity and, where it is known, how much of
        its output was lost.

    Raises:
        ConfigError: for unknown names, or N:M that does not fit a matrix.
        DataError: if the batches are empty, or are not of this model.
        TargetError: if a pattern matches no parameter.
        ArchitectureError: if the config of the model cannot say the units that are left, or it has no blocks.
        OutputExistsError: if the output holds something else.
        DiskFullError: if there is no room; from folder to folder, what is done stays for the next run.

    Source: Frantar and Alistarh 2023, "SparseGPT"; Sun et al. 2024, "Wanda"; Kwon et al. 2022 (units).
    """
    if not isinstance(config, OneShotConfig):
        raise ConfigError(f"config: expected a OneShotConfig, found {type(config).__name__}")
    check_config(config)
    if isinstance(model, (str, os.PathLike)):
        if config.keep:
            raise ConfigError("units are removed from a loaded model: load it and pass it")
        if output is None:
            raise ConfigError("give output, the folder to make from a model that is read block by block")
        return _stream(os.fspath(model), config, calibration, output, device)
    _refuse_existing(output)
    if config.keep:
        model = prune_units(model, calibration, config)
        report: dict[str, Any] = {}
    else:
        report = _in_memory(model, config, check_batches(calibration, model))
    if output is not None:
        _save(model, output, config, _description(config, calibration, report))
    return model


def check_config(config: OneShotConfig) -> None:
    """Make sure that there are such criteria.

    Raises:
        ConfigError: listing what exists.
    """
    if config.keep:
        check_units(config)
    else:
        criterion_of(config)


def _refuse_existing(output: Any) -> None:
    folder = None if output is None else Path(output)
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists already; remove it or choose another output")


def _save(model: Any, output: str | os.PathLike[str], config: OneShotConfig, report: dict[str, Any]) -> None:
    with whole_folder(Path(output)) as part:
        if config.layout == "per_layer":
            save_per_layer(model, part)
        else:
            model.save_pretrained(part)
        (part / "oneshot.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _description(config: OneShotConfig, batches: Sequence[Batch], report: Mapping[str, Any]) -> dict[str, Any]:
    first = next(iter(batches[0].values()))
    rows = sum(len(next(iter(batch.values()))) for batch in batches)
    return {
        "config": config.to_dict(defaults=False),
        "calibration": {
            "samples": rows,
            "shape": list(first.shape[1:]),
            **getattr(batches, "settings", {}),
            "fingerprint": _fingerprint(batches),
        },
        "matrices": dict(report),
    }


def _fingerprint(batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(str(tuple(batch[name].shape)).encode())
            digest.update(batch[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_block(places: Sequence[Place], blocks: Sequence[str], config: OneShotConfig) -> dict[str, list[Place]]:
    """Return the matrices of each block; what stands outside of blocks (poolers, first convolutions) is left alone."""
    if list(blocks) == [WHOLE]:
        return {WHOLE: list(places)}
    found = {block: [p for p in places if p.name.startswith(f"{block}.")] for block in blocks}
    outside = [p.name for p in places if not any(p in each for each in found.values())]
    if outside and config.include:
        raise TargetError(
            f"include: {outside[0]} stands outside of the blocks ({blocks[0]} ...), whose weights alone can be pruned "
            "without training; leave it out"
        )
    return found


def _in_memory(model: nn.Module, config: OneShotConfig, batches: Sequence[Batch]) -> dict[str, Any]:
    places = find_places(model, config.include, config.exclude)
    check_groups(places, config)
    blocks = find_blocks(model, [place.name for place in places])
    with plain_experts(model):
        blocks = in_order(model, blocks, batches[0])
        by_block = _by_block(places, blocks, config)
        named = dict(model.named_parameters())
        parameters = {
            block: {name: p for name, p in named.items() if block == WHOLE or name.startswith(f"{block}.")}
            for block in blocks
        }
        device = next(model.parameters()).device
        with _room(config) as room:
            walk = Walk(model, blocks, _joined(batches, places, config), device, Activations(room))
            pruner = BlockPruner(walk, by_block, config, parameters.__getitem__, adder())
            if config.scope in ("owl", "sensitivity"):
                for position in range(len(blocks)):
                    pruner.measure(position)
            for position, block in enumerate(blocks):
                pruner.prune(position)
                _say(position, blocks, block)
    return pruner.report


def _joined(batches: Sequence[Batch], places: Sequence[Place], config: OneShotConfig) -> Sequence[Batch]:
    """Return all batches as one, if they are of one shape and what a block makes of them is not too much at once."""
    shapes = {tuple((name, values.shape[1:]) for name, values in batch.items()) for batch in batches}
    positions = sum(next(iter(batch.values())).numel() for batch in batches)
    # The widest matrix's inputs and outputs, and as much again around them.
    size = 4 * 4 * positions * max(max(place.rows_columns) for place in places)
    if len(shapes) != 1 or size > config.joint_gb * 1e9:
        return batches
    return [{name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}]


@contextlib.contextmanager
def _room(config: OneShotConfig) -> Iterator[Path | None]:
    if config.activations == "memory":
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _stream(
    source: str,
    config: OneShotConfig,
    calibration: Sequence[Batch],
    output: str | os.PathLike[str],
    device: str | None,
) -> Path:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    streamed = StreamedModel(source, place)
    batches = check_batches(calibration, streamed.skeleton)
    description = _description(config, calibration, {})
    places = find_places(streamed.skeleton, config.include, config.exclude)
    check_groups(places, config)
    blocks = find_blocks(streamed.skeleton, [p.name for p in places])
    refuse_whole(blocks, source)
    by_block = _by_block(places, blocks, config)
    out = _open_output(output, {"source": source, **description})
    streamed.open(blocks)
    going_on = f"{output} is not there yet; free some space and run again, which goes on with {out.part.name}"
    with full_disk_explained(going_on), plain_experts(streamed.model), out.activations() as room:
        kept = Activations(room if config.activations == "disk" else None)
        walk = Walk(streamed.model, blocks, _joined(batches, places, config), place, kept)
        pruner = BlockPruner(walk, by_block, config, streamed.parameters, adder())
        pruner.needs, pruner.report = out.state["needs"], out.state["report"]
        if config.scope in ("owl", "sensitivity") and len(pruner.needs) < len(blocks):
            for position, block in enumerate(blocks):
                streamed.load(block)
                pruner.measure(position)
                streamed.drop(block)
            out.write()
        for position, block in enumerate(blocks):
            if block in out.state["done"]:
                streamed.load(block, out.block(position))
                pruner.hand_on(position)
            else:
                streamed.load(block)
                pruner.prune(position)
                if not out.rank:
                    streamed.save([block], out.block(position))
                out.state["done"].append(block)
                out.write()
                _say(position, blocks, block)
            streamed.drop(block)
        if not out.rank:
            streamed.save(blocks, out.block(None))
        out.finish(len(blocks), {**description, "matrices": pruner.report}, streamed.folder)
    wait_for_all()
    return Path(output)


def _open_output(folder: str | os.PathLike[str], wanted: dict[str, Any]) -> Output:
    """Return the output; the first process makes it, the others find it."""
    rank = process_rank()
    out = None if rank else Output(folder, wanted)
    wait_for_all()
    # How far the run is must be the same everywhere before the first process goes on.
    out = out or Output(folder, wanted, rank)
    wait_for_all()
    return out


@contextlib.contextmanager
def plain_experts(model: nn.Module) -> Iterator[None]:
    """Have experts multiply one after the other inside, so that it is seen which one is given what."""
    config = getattr(model, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None or not hasattr(model, "set_experts_implementation"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _say(position: int, blocks: Sequence[str], block: str) -> None:
    print(f"prune: [{position + 1}/{len(blocks)}] {block or 'the whole model'}", file=sys.stderr)
