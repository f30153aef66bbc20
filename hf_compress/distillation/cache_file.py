"""What a teacher said of each example, on disk: parts of a `datasets` table, found by what the model was given.

Level: state. An example is known by a hash of its inputs without padding, so the order of examples, their batches and
the number of processes do not matter, and changed inputs are noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_compress.checksums import CHECKSUMS, changed_files, read_checksums, write_checksums
from hf_compress.errors import CheckpointError

MANIFEST = "teacher_cache.json"
_FORMAT = 2
_ANEW = "remove the folder and call cache_teacher again"


def example_keys(batch: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> list[int]:
    """Return a hash of the inputs of each example, padding left out.

    Args:
        batch: the tensors that decide what the teacher says.
        mask: (batch, length), true where a token is no padding; None if nothing is padded.
    """
    names = sorted(batch)
    arrays = {n: batch[n].detach().cpu() for n in names}
    kept = mask.detach().cpu().bool() if mask is not None else None
    keys = []
    for row in range(len(arrays[names[0]])):
        digest = hashlib.blake2b(digest_size=8)
        for name in names:
            value = arrays[name][row]
            if kept is not None and value.shape == kept[row].shape:
                value = value[kept[row]]
            value = value.float() if value.is_floating_point() else value.long()
            digest.update(f"{name}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        keys.append(int.from_bytes(digest.digest(), "little", signed=True))
    return keys


class CacheWriter:
    """Adds parts to a folder, each whole or not at all.

    Args:
        folder: made if it is not there.
        settings: what the cache is made with; a folder made with others is refused.
        is_first: whether to begin; of several processes the others join later.

    Raises:
        CheckpointError: if the folder holds a cache with other settings, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], is_first: bool = True) -> None:
        self.folder = folder
        self._settings = {"format": _FORMAT, **settings}
        manifest = folder / MANIFEST
        if manifest.is_file():
            found = _read_manifest(folder)
            found.pop("complete")
            differ = sorted(k for k in {*found, *self._settings} if found.get(k) != self._settings.get(k))
            if differ:
                raise CheckpointError(
                    f"{folder.name} holds a cache that was made with another {', '.join(differ)}; choose a new "
                    "folder, or remove this one"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise CheckpointError(f"{folder.name} is not empty and holds no teacher cache; choose a new folder")
        if not is_first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.tmp"):
            shutil.rmtree(unfinished)
        self._write_manifest(complete=False)

    def known(self) -> set[int]:
        """Return the keys of the examples that are there already."""
        return {int(key) for part in _parts(self.folder) for key in _load(part)["key"]}

    def add(self, columns: Mapping[str, Sequence[Any]], suffix: str) -> None:
        """Write a part; `suffix` tells the processes apart."""
        from datasets import Dataset
        from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

        shown = is_progress_bar_enabled()
        number = len(list(self.folder.glob(f"part-*-{suffix}")))
        final = self.folder / f"part-{number:06d}-{suffix}"
        part = final.with_suffix(".tmp")
        disable_progress_bar()
        try:
            Dataset.from_dict(dict(columns)).save_to_disk(str(part))
        finally:
            if shown:
                enable_progress_bar()
        # Arrow trusts its files: changed bytes would be wrong numbers, or reads beyond the end.
        write_checksums(part, [path.name for path in part.iterdir()])
        os.replace(part, final)

    def finish(self) -> None:
        """Say that all examples are there."""
        self._write_manifest(complete=True)

    def _write_manifest(self, complete: bool) -> None:
        part = self.folder / (MANIFEST + ".part")
        data = {**self._settings, "complete": complete}
        part.write_text(json.dumps({**data, "checksum": zlib.crc32(json.dumps(data).encode())}, indent=2))
        os.replace(part, self.folder / MANIFEST)


class CacheReader:
    """Finds examples in a finished cache.

    Args:
        folder: made by `cache_teacher`.

    Attributes:
        settings: what the cache was made with.

    Raises:
        CheckpointError: if there is no cache, or an unfinished one.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = _read_manifest(folder)
        if not self.settings["complete"]:
            raise CheckpointError(f"{folder.name} is not complete; call cache_teacher again, which goes on with it")
        from datasets import concatenate_datasets

        parts = [_load(part) for part in _parts(folder)]
        if not parts:
            raise CheckpointError(f"{folder.name} has lost its parts; make the cache again")
        self._rows = concatenate_datasets(parts).with_format("numpy")
        keys = np.asarray(self._rows["key"][:], dtype=np.int64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, keys: Sequence[int]) -> dict[str, list[np.ndarray]]:
        """Return the columns of the examples with these keys, in their order.

        Raises:
            CheckpointError: if one is not there.
        """
        wanted = np.asarray(keys, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        missing = int((self._keys[places] != wanted).sum())
        if missing:
            raise CheckpointError(
                f"{missing} of {len(keys)} examples are not in the teacher's cache; it was made from other data, "
                "another tokenizer or collator, or inputs that change from epoch to epoch (random masking, crops); "
                "make it from these, or give the teacher itself"
            )
        found = self._rows[self._order[places]]
        return {name: list(found[name]) for name in found if name != "key"}


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*") if not path.name.endswith(".tmp"))


def _load(part: Path) -> Any:
    from datasets import load_from_disk

    try:
        written = read_checksums(part)
        names = {path.name for path in part.iterdir()} - {CHECKSUMS}
        is_whole = names == set(written) and not changed_files(part, written)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{part.name} of the teacher's cache cannot be read ({error}); {_ANEW}") from error
    if not is_whole:
        raise CheckpointError(f"{part.name} of the teacher's cache was changed after it was written; {_ANEW}")
    return load_from_disk(str(part))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.name} holds no teacher cache; make one with cache_teacher") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise CheckpointError(f"{folder.name} was written by another version of hf_compress; make it again")
    if found.pop("checksum", None) != zlib.crc32(json.dumps(found).encode()):
        raise CheckpointError(f"{MANIFEST} in {folder.name} was changed after it was written; {_ANEW}")
    return found
