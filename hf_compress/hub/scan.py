"""What may leave this machine: decides for each file of a folder whether it is sent, left out, or forbids the push.

Level: base. Files are judged by what they hold, whatever they are called; large ones are read piece by piece.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from hf_compress.hub.pickles import HEAD, is_named_like_pickle, pickle_reason

CHUNK = 1 << 20
# Longer than any token or path that is looked for: what straddles two chunks is found in the second.
OVERLAP = 1024
MAX_SAFETENSORS_HEADER = 100_000_000

TRAINING_STATE = "training state, of use only for resuming"
LEFT_OUT_FILES = {
    **dict.fromkeys(
        ("training_args.bin", "trainer_state.json", "pruning_state.safetensors", "distillation_state.safetensors"),
        TRAINING_STATE,
    ),
    **dict.fromkeys(("optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt"), TRAINING_STATE),
    **dict.fromkeys(("rng_state*.pth", "random_states_*.pkl", "checksums.json"), TRAINING_STATE),
    **dict.fromkeys(("*.log", "events.out.tfevents.*"), "a log"),
    "*.part": "half-written",
}
LEFT_OUT_FOLDERS = {
    **dict.fromkeys(("checkpoint-*", "last-checkpoint"), "a training checkpoint"),
    **dict.fromkeys(("runs", "logs", "wandb", "mlruns"), "logs"),
}
PICKLE_ADVICE = "loading it can run code; save the contents as safetensors or JSON, or delete the file"
# Vocabularies hold any word, "/root/" and "/home/x/" included, so only this machine's own paths count there.
VOCABULARIES = ("vocab.*", "tokenizer.json", "merges.txt", "added_tokens.json", "encoder.json", "dict.txt", "*.vocab")
CONFIGS_WITH_AUTO_MAP = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


class SentFile(NamedTuple):
    """A file that is sent: its path in the repo and its size in bytes."""

    path: str
    size: int


class Finding(NamedTuple):
    """A file or folder (with a slash at the end) and why it is left out or refused."""

    path: str
    reason: str


class Pattern(NamedTuple):
    """Something that must not be in a file; `hint` is in every match and much faster to search for than `regex`."""

    what: str
    hint: bytes
    regex: re.Pattern[bytes]


@dataclass(frozen=True)
class Scan:
    """What `scan_folder` decided.

    Args:
        send: the files to send, in order of path.
        left_out: files and folders that a push silently skips, each with the reason.
        refused: what forbids the push as a whole; one file can be there several times.
    """

    send: tuple[SentFile, ...]
    left_out: tuple[Finding, ...]
    refused: tuple[Finding, ...]


def _pattern(what: str, hint: str, regex: str) -> Pattern:
    return Pattern(what, hint.encode(), re.compile(regex.encode()))


_TOKEN = "an access token ({}); revoke it where it was made, then remove it from the file"
_HOME = "a path in somebody's home folder, which names a person; remove it or write a relative path"
# A path begins where no word ends ("https://x.org/home/a/" is none), or after an escaped line break in JSON.
_START = r"(?:(?<![\w.%~-])|(?<=\\[nrt]))"
_NAME = r"""[^/\s"'<>|*?:\\{}$%.,;()`][^/\s"'<>|*?:\\{}$%]*"""
TOKENS = (
    _pattern(_TOKEN.format("Hugging Face"), "hf_", r"(?<!\w)hf_(?:oauth_|jwt_)?[A-Za-z0-9]{20,}"),
    _pattern(_TOKEN.format("Hugging Face"), "api_org_", r"(?<!\w)api_org_[A-Za-z0-9]{20,}"),
    _pattern(_TOKEN.format("GitHub"), "gh", r"(?<!\w)gh[pousr]_[A-Za-z0-9]{20,}"),
    _pattern(_TOKEN.format("GitHub"), "github_pat_", r"(?<!\w)github_pat_\w{20,}"),
    _pattern(_TOKEN.format("GitLab"), "glpat-", r"(?<!\w)glpat-[\w-]{20,}"),
    _pattern(_TOKEN.format("API key"), "sk-", r"(?<!\w)sk-(?:(?:proj|ant|svcacct|or)-[\w-]{20,}|[A-Za-z0-9]{20,})"),
    _pattern(_TOKEN.format("Google"), "AIza", r"(?<!\w)AIza[\w-]{35}"),
    _pattern(_TOKEN.format("AWS"), "A", r"(?<!\w)(?:AKIA|ASIA)[0-9A-Z]{16}(?!\w)"),
    _pattern(_TOKEN.format("Slack"), "xox", r"(?<!\w)xox[abeprs]-[\w-]{10,}"),
    _pattern(_TOKEN.format("private key"), "-----BEGIN", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
)
HOMES = (
    _pattern(_HOME, "/home/", rf"{_START}/home/{_NAME}/"),
    _pattern(_HOME, "Users/", rf"{_START}/Users/{_NAME}/"),
    _pattern(_HOME, "/root/", rf"{_START}/root/[\w.]"),
    _pattern(_HOME, "Users", rf"(?<!\w)[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/){_NAME}(?:\\|/)"),
)


def scan_folder(folder: str | Path, secrets: Collection[str] = ()) -> Scan:
    """Decide for each file below `folder` whether a push sends it, leaves it out, or must be refused.

    Args:
        folder: the folder of the model; nothing in it is changed, and no request is made.
        secrets: strings that no file may hold, beside the tokens known by their form and the one logged in with.

    Returns:
        The decisions, with every reason to refuse, not only the first.
    """
    own = tuple(_own_patterns(Path(folder), [*secrets, *own_tokens()]))
    scanner = _Scanner(Path(folder).resolve(), own)
    scanner.visit(scanner.root, "")
    return Scan(tuple(sorted(scanner.send)), tuple(scanner.left_out), tuple(scanner.refused))


class _Scanner:
    def __init__(self, root: Path, own: tuple[Pattern, ...]) -> None:
        self.root, self.own = root, own
        self.auto_map = _auto_map_files(root)
        self.send: list[SentFile] = []
        self.left_out: list[Finding] = []
        self.refused: list[Finding] = []

    def visit(self, folder: Path, prefix: str) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            self.refused.append(Finding(prefix, f"cannot be read ({error.strerror}); make it readable or delete it"))
            return
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            path = prefix + entry.name
            reason = left_out_reason(entry.name, is_folder)
            if reason is not None:
                self.left_out.append(Finding(path + "/" * is_folder, reason))
            elif is_folder:
                self.visit(folder / entry.name, path + "/")
            else:
                self.judge(folder / entry.name, path)

    def judge(self, file: Path, path: str) -> None:
        problem = _link_problem(file, self.root)
        try:
            problems = [problem] if problem else list(self.file_problems(file, path))
            size = 0 if problem else file.stat().st_size
        except OSError as error:
            problems, size = [f"cannot be read ({error.strerror}); make it readable or delete it"], 0
        self.refused += [Finding(path, p) for p in problems]
        if not problems:
            self.send.append(SentFile(path, size))

    def file_problems(self, file: Path, path: str) -> Iterator[str]:
        if file.suffix == ".py" and path not in self.auto_map:
            yield "a python file not named by auto_map: a plain checkpoint needs no code; delete it or list it there"
        with open(file, "rb") as opened:
            head = opened.read(HEAD)
        problem, metadata = _safetensors_header(file) if file.suffix.lower() == ".safetensors" else (None, None)
        patterns = TOKENS + self.own
        if metadata is not None:
            yield from _found_in(metadata, patterns + HOMES)
            return
        reason = pickle_reason(file, head)
        # OpenVINO keeps raw weights in X.bin beside X.xml.
        is_openvino = file.suffix == ".bin" and file.with_suffix(".xml").exists()
        if reason is None and is_named_like_pickle(path) and not is_openvino:
            reason = f"named {file.suffix}, as pickles are"
        if reason is not None:
            yield f"{reason}: {PICKLE_ADVICE}"
        elif problem is not None:
            yield problem
        is_vocabulary = any(fnmatch(file.name, p) for p in VOCABULARIES)
        yield from _found_in_file(file, patterns if is_vocabulary or not _is_text(head) else patterns + HOMES)


def left_out_reason(name: str, is_folder: bool) -> str | None:
    """Return why a file or folder called `name` is never sent, or None if it is sent."""
    if name.startswith(("_", ".")):
        return "private by its name"
    patterns = LEFT_OUT_FOLDERS if is_folder else LEFT_OUT_FILES
    return next((reason for pattern, reason in patterns.items() if fnmatch(name, pattern)), None)


def _link_problem(file: Path, root: Path) -> str | None:
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(root):
        return "a link that leaves the folder; copy the file to here"
    if not target.exists():
        return "a link to nothing; delete it"
    return None if target.is_file() else "not a plain file; delete it, or copy here what it links to"


def _safetensors_header(file: Path) -> tuple[str | None, bytes | None]:
    """Return what is wrong with a safetensors file, or its metadata as text."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        raw = opened.read(length) if 8 + length <= size and length <= MAX_SAFETENSORS_HEADER else b""
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, TypeError, AttributeError, LookupError):
        return "not a safetensors file in spite of its name; save the model again", None
    if 8 + length + end != size:
        return f"damaged: {8 + length + end} bytes expected, {size} found; save the model again", None
    return None, json.dumps(metadata, ensure_ascii=False).encode()


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _found_in_file(file: Path, patterns: tuple[Pattern, ...]) -> Iterator[str]:
    rest, line, seen = b"", 1, set()
    with open(file, "rb") as opened:
        while chunk := opened.read(CHUNK):
            # UTF-16, as PowerShell writes it, is found as well: its ASCII is one byte in two.
            rest += chunk.replace(b"\0", b"")
            for pattern in patterns:
                match = pattern.hint in rest and pattern.what not in seen and pattern.regex.search(rest)
                if match:
                    seen.add(pattern.what)
                    lines = rest.count(b"\n", 0, match.start())
                    yield f"line {line + lines} holds {pattern.what}"
            line += rest.count(b"\n", 0, -OVERLAP)
            rest = rest[-OVERLAP:]


def _found_in(text: bytes, patterns: tuple[Pattern, ...]) -> Iterator[str]:
    found = dict.fromkeys(p.what for p in patterns if p.hint in text and p.regex.search(text))
    return (f"its metadata holds {what}" for what in found)


def own_tokens() -> Iterator[str]:
    """Yield the tokens that this machine is logged in with, without asking anybody."""
    # Not get_token(): that may send requests, to renew what expires.
    from huggingface_hub import constants

    found = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    yield from (token.strip() for token in found if token.strip())


def _own_patterns(folder: Path, secrets: Collection[str]) -> Iterator[Pattern]:
    for secret in secrets:
        if len(secret) >= 8:
            yield _pattern("the token you are logged in with; remove it from the file", secret, re.escape(secret))
    for path in dict.fromkeys((Path.home(), folder.absolute().parent, folder.resolve().parent)):
        # Shorter ones, such as /root or /data, say nothing of a person and stand in many texts.
        if len(path.parts) > 2:
            # As in a text, and as in JSON.
            for text in dict.fromkeys((str(path), json.dumps(str(path))[1:-1])):
                what = "a path of this machine; remove it or write a relative path"
                yield _pattern(what, text, rf"{re.escape(text)}(?![\w-])")


def _auto_map_files(root: Path) -> set[str]:
    named: list[Any] = []
    for name in CONFIGS_WITH_AUTO_MAP:
        try:
            config = json.loads((root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        auto_map = config.get("auto_map") if isinstance(config, dict) else None
        for value in auto_map.values() if isinstance(auto_map, dict) else ():
            named += value if isinstance(value, list) else [value]
    # "owner/repo--module.Class" means a file of another repo.
    return {v.rpartition(".")[0] + ".py" for v in named if isinstance(v, str) and "--" not in v}
