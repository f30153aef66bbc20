"""Folders that are made: never over something that is there.

Level: base.
"""

from __future__ import annotations

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
