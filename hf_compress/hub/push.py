"""`push`: sends a model folder to the Hub in one commit, or refuses before the first request.

Level: outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_compress.errors import HubError, PushRefusedError
from hf_compress.hub.attempts import attempt
from hf_compress.hub.commit import Request, make_commit, make_tag
from hf_compress.hub.config import PushOptions, is_hub_id
from hf_compress.hub.explain import explain
from hf_compress.hub.metadata import metadata_problems
from hf_compress.hub.scan import Finding, Scan, SentFile, own_tokens, scan_folder
from hf_compress.measurement.adapter import is_adapter, read_adapter

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PushResult:
    """What a push sent, or with `dry_run` would send.

    Args:
        repo_id: the repo, with its owner once it is known.
        endpoint: the address of the Hub.
        revision: the branch.
        dry_run: whether nothing was sent.
        files: the files, with their sizes.
        left_out: what stayed here and why.
        notes: what is missing that readers of the repo would expect.
        commit_url: address of the commit; None in a dry run.
        pull_request: address of the pull request, if one was opened.
        tag: that the commit got, if one was asked for.
        oid: id of the commit; None in a dry run.
    """

    repo_id: str
    endpoint: str
    revision: str
    dry_run: bool
    files: tuple[SentFile, ...]
    left_out: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    commit_url: str | None = None
    oid: str | None = None
    pull_request: str | None = None
    tag: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def to_text(self) -> str:
        """Return the result for a terminal."""
        verb = "would send" if self.dry_run else "sent"
        target = f"{self.repo_id} ({self.revision}) at {self.endpoint}"
        lines = [f"{verb} {len(self.files)} files, {self.size:,} bytes, to {target}"]
        lines += [f"  {file.path}  {file.size:,}" for file in self.files]
        lines += [f"left out: {path} ({reason})" for path, reason in self.left_out]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"commit: {self.commit_url}"] if self.commit_url else []
        lines += [f"pull request: {self.pull_request}"] if self.pull_request else []
        lines += [f"tag: {self.tag}"] if self.tag and not self.dry_run else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["files"] = [file._asdict() for file in self.files]
        plain["left_out"] = [finding._asdict() for finding in self.left_out]
        return {**plain, "notes": list(self.notes)}


def push(
    folder: str | Path, repo_id: str, *, token: str | None = None, dry_run: bool = False, **options: Any
) -> PushResult:
    """Send a model folder to the Hub in one commit, after checking that nothing in it must stay here.

    The commit is made only on top of what the branch held when the push began. Requests that fail for a passing
    reason are repeated a few times; after a lost answer the Hub is asked whether the commit was made.

    Args:
        folder: holds config.json or adapter_config.json.
        repo_id: "name" or "owner/name"; the repo is made if it is not there.
        token: of the Hub; None: the one logged in with.
        dry_run: only say what would be sent; no request is made.
        **options: fields of `PushOptions`: private, revision (an existing branch), commit_message, create_pr, tag.

    Returns:
        What was sent and where to, without the token.

    Raises:
        PushRefusedError: if the folder is no model or holds what must not leave this machine; no request was made.
        ConfigError: if an option is unknown or they do not go together.
        HubError: if the Hub cannot be reached or does not agree; no commit was made, unless the message says so.
    """
    folder = Path(folder)
    _check_arguments(repo_id, token)
    where = PushOptions.from_dict(options)
    scan = scan_folder(_model_folder(folder), [token] if token else [])
    _refuse(folder, [*scan.refused, *_adapter_problems(folder), *_card_problems(folder)])
    with _hub_errors(repo_id, token):
        api = _api(token)
        notes = tuple(_notes(scan))
        result = PushResult(repo_id, api.endpoint, where.revision or "main", dry_run, scan.send, scan.left_out, notes)
        if dry_run:
            return result
        repo_id = _prepare_repo(api, repo_id, where.private, where.revision)
        request = Request(repo_id, where.revision, where.commit_message or "Upload model", where.create_pr)
        commit = make_commit(api, folder, [file.path for file in scan.send], request)
        result = dataclasses.replace(result, repo_id=repo_id, commit_url=str(commit.commit_url), oid=commit.oid)
        if where.tag is not None:
            make_tag(api, repo_id, where.tag, commit)
        return dataclasses.replace(result, pull_request=commit.pr_url, tag=where.tag)


def _check_arguments(repo_id: str, token: str | None) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise HubError("token: expected printable characters without spaces, found others or none; copy it again")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"expected a repo like 'name' or 'owner/name', found {repo_id!r}: {error}") from error


def _model_folder(folder: Path) -> Path:
    found = [name for name in ("config.json", "adapter_config.json") if os.path.isfile(folder / name)]
    if not found:
        there = "a folder without them" if os.path.isdir(folder) else "no folder"
        raise PushRefusedError(
            f"expected a model folder with config.json or adapter_config.json, found {there}: {folder}; "
            "save the model there first"
        )
    return folder


def _refuse(folder: Path, problems: list[Finding]) -> None:
    if problems:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in problems)
        raise PushRefusedError(f"{folder} was not pushed, nothing was sent; {len(problems)} problem(s):\n{listed}")


def _adapter_problems(folder: Path) -> Iterator[Finding]:
    """Yield why nobody else could load an adapter."""
    if is_adapter(folder):
        base = read_adapter(folder).get("base_model_name_or_path")
        if not isinstance(base, str) or not is_hub_id(base):
            yield Finding(
                "adapter_config.json",
                "base_model_name_or_path is no id on the Hub; push the base first and write its id there",
            )


def _card_problems(folder: Path) -> Iterator[Finding]:
    """Yield what the Hub would refuse in the README's metadata, as far as that shows without asking it."""
    try:
        text = (folder / "README.md").read_bytes().decode("utf-8")
    except OSError:
        return  # there is none, or the scan reports it
    except UnicodeDecodeError as error:
        yield Finding("README.md", f"it cannot be read ({error}); expected UTF-8")
        return
    for problem in metadata_problems(text):
        yield Finding("README.md", problem)


def _notes(scan: Scan) -> Iterator[str]:
    paths = [file.path for file in scan.send]
    if "README.md" not in paths:
        yield "there is no README.md: the page of the model will be empty; write a card"
    if not any(path.endswith((".safetensors", ".onnx", ".bin", ".gguf")) for path in paths):
        yield "there are no weights"


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    # The client reads HF_ENDPOINT when it is imported; what is set now counts.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token=token)


def _prepare_repo(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    if revision not in (None, "main"):
        # A branch is in a repo that exists: making one first would leave it behind, empty, if the branch is missing.
        attempt(lambda: api.model_info(repo_id, revision=revision))
    else:
        name = repo_id
        repo_id = attempt(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
    if private and not attempt(lambda: api.model_info(repo_id)).private:
        raise HubError(
            f"expected {repo_id} to be private, found it public; nothing was sent; "
            "make it private in its settings, use another name, or leave private away"
        )
    return repo_id


@contextlib.contextmanager
def _hub_errors(repo_id: str, token: str | None) -> Iterator[None]:
    from huggingface_hub.utils import httpx

    try:
        yield
    except HubError:
        raise
    except (httpx.HTTPError, OSError, ValueError, KeyError, RuntimeError) as error:
        text = f"{repo_id} was not pushed: {explain(error)}"
        secrets = [*([token] if token else []), *own_tokens()]
        for secret in secrets:
            text = text.replace(secret, "***")
        # The chain shows the cause's own text, so it is cut where that holds the token.
        raise HubError(text) from (None if any(s in str(error) for s in secrets) else error)
