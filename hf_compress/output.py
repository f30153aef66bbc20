"""Folders that are made: never over something that is there, and whole or not at all.

Level: base.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_compress.errors import DiskFullError, OutputExistsError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What writers other than Python's say: safetensors, exporters, and torch.save, which names no reason.
_FULL_TEXTS = (
    *(f"os error {number})" for number in sorted(_FULL)),
    *(os.strerror(number) for number in sorted(_FULL)),
    "PytorchStreamWriter failed", "unexpected pos", "iostream error",
)  # fmt: skip

# What else makes a model folder usable: tokenizers, processors, generation settings, licences.
_COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template*",
    "LICENSE*",
)  # fmt: skip


def free_folder(place: str | Path) -> Path:
    """Return `place` as a path, if nothing is there or an empty folder.

    Raises:
        OutputExistsError: if something is there.
    """
    folder = Path(place)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} already holds something; remove it or choose another place")
    return folder


@contextlib.contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """Yield a place to write a folder to; it becomes `output` when all went well, and is gone otherwise.

    What a killed process left there is removed.

    Raises:
        DiskFullError: if there is no room.
    """
    output = Path(output)
    with full_disk_explained(f"{output} was not written, and nothing is left of it; free some space and run again"):
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        with _scratch(output) as scratch:
            part = Path(scratch) / output.name
            yield part
            os.replace(part, output)


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizers, processors and licences from one model folder to another."""
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file() and not path.name.endswith(".safetensors"):
                shutil.copy2(path, target / path.name)


@contextlib.contextmanager
def full_disk_explained(outcome: str) -> Iterator[None]:
    """Turn what the many writers raise when there is no room into one error; `outcome` says what is left and to do.

    Raises:
        DiskFullError: if there is no room.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        said = error.__cause__ if isinstance(error, DiskFullError) else error
        raise DiskFullError(f"no room left on the disk ({said}): {outcome}") from said


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, DiskFullError) or error.errno in _FULL
    return any(text in str(error) for text in _FULL_TEXTS)


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[str]:
    """Yield a new folder beside `output`, locked as long as this process lives, and remove it."""
    folder, descriptor = "", None
    while not os.path.isdir(folder):
        folder = tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)
        try:
            descriptor = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            # Another process took it for a leftover before it was locked.
            folder = ""
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: str) -> int | None:
    """Return an open file that holds a lock on `folder` until the process dies; None where there are no locks.

    Raises:
        BlockingIOError: if another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # not on this file system
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(output: Path) -> None:
    """Remove what processes that were killed left of `output`; one that lives holds the lock."""
    for place in glob.glob(f"{glob.escape(str(output.parent / f'.{output.name}.'))}????????"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            if os.path.islink(place) or not os.path.isdir(place) or set(os.listdir(place)) - {output.name}:
                continue
            descriptor = _lock(place)
            if descriptor is not None:
                shutil.rmtree(place, ignore_errors=True)
                os.close(descriptor)
