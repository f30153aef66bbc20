"""One commit on the Hub, on top of a known one, made once even when answers get lost.

Level: outside.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_compress.errors import HubError
from hf_compress.hub.attempts import attempt
from hf_compress.hub.explain import ADVICE, explain

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


class Request(NamedTuple):
    """Where a commit goes and what it is called."""

    repo_id: str
    revision: str | None
    message: str
    create_pr: bool


def make_commit(api: HfApi, folder: Path, paths: Sequence[str], request: Request) -> CommitInfo:
    """Make one commit on top of what the branch holds now, once.

    When an answer was lost, what the branch holds tells whether the commit is there.

    Args:
        api: the client.
        folder: that `paths` are in.
        paths: files to send.
        request: where to.

    Raises:
        HubError: if the branch moved meanwhile.
    """
    parent = _head(api, request)
    # By this the commit is known again.
    mark = f"Pushed by hf_compress ({uuid.uuid4().hex[:12]})"
    tried = False

    def once() -> CommitInfo:
        nonlocal tried, parent
        if tried and (head := _head(api, request)) != parent:
            if not _is_marked(api, request, mark):
                raise HubError(f"{request.repo_id} was not pushed: {ADVICE[412]}; nothing of this push is in it")
            # Nothing has changed on top of it, so the client returns that commit.
            parent = head
        tried = True
        return _send(api, folder, paths, request, {"parent_commit": parent, "commit_description": mark})

    # A pull request changes no branch that could be asked, so it is sent once only.
    return once() if request.create_pr else attempt(once)


def _head(api: HfApi, request: Request) -> str | None:
    return attempt(lambda: api.model_info(request.repo_id, revision=request.revision)).sha


def _is_marked(api: HfApi, request: Request, mark: str) -> bool:
    """Say whether the newest commit of the branch is the one that was just sent."""
    commits = attempt(lambda: api.list_repo_commits(request.repo_id, revision=request.revision))
    return bool(commits) and mark in commits[0].message


def _send(api: HfApi, folder: Path, paths: Sequence[str], request: Request, options: dict[str, Any]) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd

    options = {**options, "commit_message": request.message, "revision": request.revision}
    options["create_pr"] = request.create_pr
    try:
        operations = [CommitOperationAdd(path, folder / path) for path in paths]
        return api.create_commit(request.repo_id, operations, **options)
    except ConnectionError as error:
        # The client does not ask whether a server has Xet; this address, missing, tells that it has not.
        if "xet-write-token" not in str(error) or "404" not in str(error):
            raise
    with contextlib.ExitStack() as stack:
        # Open files, other than paths, are sent the plain way; nothing was committed before.
        operations = [CommitOperationAdd(path, stack.enter_context(open(folder / path, "rb"))) for path in paths]
        return api.create_commit(request.repo_id, operations, **options)


def make_tag(api: HfApi, repo_id: str, tag: str, commit: CommitInfo) -> None:
    """Give a commit a name.

    Raises:
        HubError: if it cannot have it; the commit is there.
    """
    from huggingface_hub.utils import HfHubHTTPError, httpx

    try:
        attempt(lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid))
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise HubError(
            f"{repo_id} was pushed ({commit.commit_url}), but it got no tag {tag!r}: {explain(error)}"
        ) from error
