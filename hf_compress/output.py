"""Folders that are made: never over something that is there, and whole or not at all.

Level: base.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_compress.errors import OutputExistsError


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
    """Yield a place to write a folder to; it becomes `output` when all went well, and is gone otherwise."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        part = Path(scratch) / output.name
        yield part
        os.replace(part, output)
