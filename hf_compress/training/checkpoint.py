"""Which Trainer checkpoints are whole: a save that was cut off is never resumed from.

Level: glue. The Trainer writes weights, optimizer, scheduler and RNG state first and trainer_state.json last. What
was changed later is known by checksums: those of safetensors files beside them, those of torch.save's archives within.
"""

from __future__ import annotations

import json
import logging
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_compress.checksums import CHECKSUMS, changed_files, read_checksums, write_checksums
from hf_compress.errors import CheckpointError

logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | Path, **needs: Any) -> Path | None:
    """Return the newest whole `checkpoint-N` folder in `output_dir`, or None; `needs` as for `checkpoint_faults`.

    Newer ones that are not whole are named in a warning.
    """
    for folder in sorted(_checkpoints(output_dir), key=lambda p: _step(p) or 0, reverse=True):
        faults = list(checkpoint_faults(folder, **needs))
        if not faults:
            return folder
        logger.warning("%s is passed over, since it is not whole: %s", folder.name, "; ".join(faults))
    return None


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [p for p in Path(output_dir).glob("checkpoint-*") if p.is_dir() and _step(p) is not None]


def checkpoint_to_resume(output_dir: str | Path, wanted: str | Path | bool, **needs: Any) -> Path | None:
    """Return the whole checkpoint that `wanted` names; for True the newest one in `output_dir`, None if there is none.

    Raises:
        CheckpointError: if the one that is named is not whole, or for True none of those that are there.
    """
    if wanted is not True:
        return require_complete(str(wanted), **needs)
    found = last_complete_checkpoint(output_dir, **needs)
    if found is None and _checkpoints(output_dir):
        raise CheckpointError(
            f"no checkpoint in {Path(output_dir).name} is whole, the log says why; train anew, or name a folder that "
            "holds one"
        )
    return found


def require_complete(folder: str | Path, **needs: Any) -> Path:
    """Return `folder` if it is a whole checkpoint.

    Raises:
        CheckpointError: naming what is missing and the newest whole checkpoint beside it.
    """
    faults = list(checkpoint_faults(Path(folder), **needs))
    if faults:
        whole = last_complete_checkpoint(Path(folder).parent, **needs)
        way_out = f"resume from {whole.name}" if whole else "there is no whole checkpoint beside it: train anew"
        raise CheckpointError(f"{Path(folder).name} is not a whole checkpoint ({'; '.join(faults)}); {way_out}")
    return Path(folder)


def checkpoint_faults(
    folder: Path, *, world_size: int = 1, optimizer: bool = True, files: Sequence[str] = ()
) -> Iterator[str]:
    """Yield what is missing, cut off or changed in a checkpoint.

    Args:
        folder: the checkpoint.
        world_size: number of processes that each must have saved their RNG state.
        optimizer: whether optimizer, scheduler and RNG state must be there (not with save_only_model).
        files: more files that must be there, such as the masks.
    """
    if not folder.is_dir():
        yield "there is no such folder"
        return
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        yield "trainer_state.json is missing or cut off"
    yield from _weight_faults(folder)
    if optimizer:
        ranks = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{i}.pth" for i in range(world_size)]
        for name in ("optimizer.pt", "scheduler.pt", *ranks):
            yield from _archive_faults(folder / name)
    for name in files:
        if not _is_whole_safetensors(folder / name):
            yield f"{name} is missing or cut off"
    if (folder / CHECKSUMS).exists():
        yield from _changes(folder)


def save_checksums(folder: Path) -> None:
    """Write the checksums of the weights and of our own state, once all of them are in the checkpoint."""
    write_checksums(folder, [path.name for path in folder.glob("*.safetensors")])


def _changes(folder: Path) -> Iterator[str]:
    try:
        changed = changed_files(folder, read_checksums(folder))
    except (OSError, ValueError, TypeError, RecursionError):
        yield f"{CHECKSUMS} is cut off"
        return
    for name in changed:
        yield f"{name} was changed after it was written (if you did that, remove {CHECKSUMS})"


def _archive_faults(path: Path) -> Iterator[str]:
    # torch.save writes the archive's directory last, so a cut-off file is no zip file.
    if not zipfile.is_zipfile(path):
        yield f"{path.name} is missing or cut off"
        return
    try:
        with zipfile.ZipFile(path) as archive:
            is_as_written = archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        is_as_written = False
    if not is_as_written:
        yield f"{path.name} was changed after it was written"


def _weight_faults(folder: Path) -> Iterator[str]:
    names = {p.name for p in folder.glob("*.safetensors") if not p.name.endswith("_state.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            yield f"{index.name} is cut off"
            continue
        # Weights lie beside their index and nowhere else.
        if any(not isinstance(name, str) or Path(name).name != name for name in named):
            yield f"{index.name} names files outside of the folder"
            continue
        names |= named
    if not names:
        yield "the weights (*.safetensors) are missing"
    for name in sorted(names):
        if not _is_whole_safetensors(folder / name):
            yield f"{name} is missing or cut off"


def _is_whole_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error):
        return False


def _step(folder: Path) -> int | None:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else None
