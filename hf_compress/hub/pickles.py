"""Pickles by their contents: plain, in archives, compressed, inside numpy files, whatever the file is called.

Level: base. Nothing is ever unpickled; of a file, and of each member of an archive, only the first megabyte is read.
"""

from __future__ import annotations

import bz2
import lzma
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

# The largest bz2 block fits, so that the beginning of any compressed file can be unpacked from its head.
HEAD = 1 << 20
# Enough to tell a pickle without a magic number from a text; each of its steps is looked at.
OLD_HEAD = 1 << 16
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
OPCODES = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
# The first bytes of lz4, zstd, 7z and rar files, for which Python 3.10 has no unpacker.
UNPACKABLE = (b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")


def pickle_reason(file: Path, head: bytes) -> str | None:
    """Return what makes `file` a pickle or a wrapper of one, or None.

    Args:
        file: the file.
        head: its first `HEAD` bytes.

    Raises:
        OSError: if the file cannot be read.
    """
    return _archive_reason(file, head) or _head_reason(head, is_whole=len(head) < HEAD)


def is_named_like_pickle(name: str) -> bool:
    """Return whether `name` has a suffix that stands for a pickle."""
    return PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES


def _archive_reason(file: Path, head: bytes) -> str | None:
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if is_named_like_pickle(name):
                    return f"an archive that holds the pickle {name}, as torch.save writes"
                with archive.open(name) as member:
                    reason = _head_reason(member.read(HEAD), inside=True)
                if reason is not None:
                    return f"an archive with {name}, which is {reason}"
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError):
        # Weights may by chance end like an archive; an archive that begins like one and is damaged is refused.
        return "a damaged or locked archive" if head.startswith(b"PK") else None
    return None


def _head_reason(head: bytes, is_whole: bool = False, inside: bool = False) -> str | None:
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and head[2:3] in OPCODES:
        return f"a pickle (protocol {head[1]})"
    if head.startswith(b"\x93NUMPY"):
        # Version 1 writes the length of its header in two bytes, later ones in four.
        length = int.from_bytes(head[8:10] if head[6:7] == b"\1" else head[8:12], "little")
        is_objects = re.search(rb"[|<>=]O", head[10 : 12 + length])
        return "a numpy array of python objects, stored as a pickle" if is_objects else None
    if head[257:262] == b"ustar":
        return "a tar archive, which can hold pickles"
    if head.startswith(UNPACKABLE) or (inside and head.startswith(b"PK\3\4")):
        return "packed so that it cannot be checked"
    inner = None if inside else _unpacked(head)
    if inner is not None:
        # A head that is full but unpacks to nothing hides what follows.
        hides = not inner and len(head) >= HEAD
        reason = "packed so that it cannot be checked" if hides else _head_reason(inner, inside=True)
        return reason and f"compressed: {reason}"
    start = head[:OLD_HEAD]
    return "a pickle (protocol 0 or 1)" if _is_old_pickle(start, is_whole and start == head) else None


def _unpacked(head: bytes) -> bytes | None:
    try:
        if head.startswith((b"\x1f\x8b", b"x")):
            return zlib.decompressobj(47).decompress(head, HEAD)
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, HEAD)
        if head.startswith((b"\xfd7zXZ", b"]\0\0")):
            return lzma.LZMADecompressor().decompress(head, HEAD)
    except (zlib.error, lzma.LZMAError, OSError):
        return None  # only began like a compressed file
    return None


def _is_old_pickle(head: bytes, is_whole: bool) -> bool:
    stack: list[object] = []
    steps, imports, end = 0, False, 0
    try:
        for opcode, argument, position in _opcodes(head):
            if not _step(opcode, stack):
                return False
            steps, end = steps + 1, (position or 0) + 1
            imports |= (
                opcode.name in ("GLOBAL", "INST")
                and re.fullmatch(r"[^\W\d][\w.]* [^\W\d][\w.]*", argument or "") is not None
            )
            if imports and opcode.name in CALLS:
                return True
    except ValueError:  # no opcode, or cut off within one
        return not is_whole and steps > 50
    # Short texts such as "N." are valid pickles too; what is not the whole of a file or does nothing is text.
    return (imports or steps >= 3) and not head[end:].strip()


def _opcodes(head: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    with warnings.catch_warnings():
        # Texts that begin like a pickle's string can hold escapes that are none.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield from pickletools.genops(head)


def _step(opcode: pickletools.OpcodeInfo, stack: list[object]) -> bool:
    mark, before = pickletools.markobject, opcode.stack_before
    needed = len(before)
    if mark in before or (opcode.name == "POP" and stack and stack[-1] is mark):
        if mark not in stack:
            return False
        while stack.pop() is not mark:
            pass
        needed = before.index(mark) if mark in before else 0
    if needed > len(stack):
        return False
    del stack[len(stack) - needed :]
    stack += opcode.stack_after
    return True
