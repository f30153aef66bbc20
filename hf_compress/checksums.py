"""Checksums of files: whether the bytes on disk are those that were written.

Level: leaf. CRC-32 finds what disks, copies and careless hands do; it is no protection against an attacker.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

CHECKSUMS = "checksums.json"
_CHUNK = 1 << 24


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file of any size."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write those of the files `names` into `folder`, whole or not at all."""
    part = folder / (CHECKSUMS + ".part")
    part.write_text(json.dumps({name: file_checksum(folder / name) for name in sorted(names)}, indent=2))
    os.replace(part, folder / CHECKSUMS)


def read_checksums(folder: Path) -> dict[str, int]:
    """Return what `write_checksums` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it holds something else.
    """
    written = json.loads((folder / CHECKSUMS).read_text())
    if not isinstance(written, dict) or any(Path(name).name != name for name in written):
        raise ValueError(f"{CHECKSUMS} holds no names of files with their sums")
    return written


def changed_files(folder: Path, written: Mapping[str, int]) -> list[str]:
    """Return the names of files that are not as their checksums say, or are gone.

    Raises:
        OSError: if a file cannot be read.
    """
    return [n for n, s in written.items() if not (folder / n).is_file() or file_checksum(folder / n) != s]
