"""A small real Hub on 127.0.0.1: it speaks HTTP with huggingface_hub's client and keeps repos and requests in memory.

Not there: Xet, pull requests, tags, pages of results, the first commit with .gitattributes that the real Hub makes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

import yaml

from .hub_http import Refusal, Request, Route, handler_for

NO_COMMIT = "0" * 40
WRITE_TOKEN = "hf_" + "WriteTokenForTheLocalHub0" + "123456789"
READ_TOKEN = "hf_" + "ReadTokenForTheLocalHub00" + "123456789"
ID = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Commit:
    """One commit: `files` is the whole tree after it."""

    oid: str
    message: str
    files: dict[str, bytes]
    lfs: frozenset[str]
    description: str = ""


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": NO_COMMIT})
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        if oid == NO_COMMIT:
            return Commit(NO_COMMIT, "", {}, frozenset())
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Fault:
    pattern: str
    status: int
    body: bytes
    content_type: str
    lose_answer: bool
    times: int = 1


class HubServer:
    """The server; use it as a context manager, point a client at `url` and log in with `token`."""

    def __init__(self, user: str = "tester") -> None:
        self.user = user
        self.token, self.read_only_token = WRITE_TOKEN, READ_TOKEN
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        # That the user may write to.
        self.organisations: set[str] = set()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        # Called with each request before it is done.
        self.watch: Callable[[Request], None] = lambda request: None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(self, ROUTES))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return path -> bytes of the repo at a branch or commit."""
        return dict(self.repos[repo_id].at(revision).files)

    def commits(self, repo_id: str) -> list[Commit]:
        """Return the commits of the repo, oldest first, over all branches."""
        return list(self.repos[repo_id].commits)

    def fail_next(
        self, pattern: str, status: int, body: bytes = b"", content_type: str = "text/html", times: int = 1
    ) -> None:
        """Answer the next request whose path matches `pattern` with an error instead of doing it; queues up."""
        self.faults.append(Fault(pattern, status, body, content_type, lose_answer=False, times=times))

    def lose_next_answer(self, pattern: str) -> None:
        """Do the next request whose path matches `pattern`, then cut the connection without an answer."""
        self.faults.append(Fault(pattern, 0, b"", "", lose_answer=True))

    def cut_next(self, pattern: str) -> None:
        """Cut the connection of the next request whose path matches `pattern`, without doing anything."""
        self.faults.append(Fault(pattern, -1, b"", "", lose_answer=False))

    def take_fault(self, path: str) -> Fault | None:
        """Remove and return the first fault that applies to `path`."""
        for fault in self.faults:
            if re.search(fault.pattern, path):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    # The routes: each gets the request and the named parts of its path, and returns what is sent back as JSON.

    def whoami(self, request: Request) -> dict[str, Any]:
        if request.token is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if request.token == self.token else "read"
        access = {"displayName": "test", "role": role}
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": access}}

    def create_repo(self, request: Request) -> dict[str, Any]:
        data = json.loads(request.body)
        owner = data.get("organization") or self.user
        self._may_write(request, owner)
        repo_id = f"{owner}/{data['name']}"
        answer = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.repos:
            raise Refusal(409, json.dumps({**answer, "error": "You already created this model repo"}))
        self.repos[repo_id] = Repo(private=data.get("visibility") == "private" or bool(data.get("private")))
        return answer

    def validate_yaml(self, request: Request) -> dict[str, Any]:
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", json.loads(request.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(match.group(1)) if match else {}
        except yaml.YAMLError as error:
            raise Refusal(400, json.dumps({"errors": [{"message": str(error)}], "warnings": []})) from error
        license_id = (data or {}).get("license", "")
        if not isinstance(license_id, (str, list)):
            raise Refusal(400, json.dumps({"errors": [{"message": '"license" must be a string'}], "warnings": []}))
        return {"errors": [], "warnings": []}

    def preupload(self, request: Request, repo: str, revision: str) -> dict[str, Any]:
        self._may_write(request, repo.split("/")[0])
        there = self._repo(request, repo).at(revision)
        return {"files": [_upload_mode(there, entry) for entry in json.loads(request.body)["files"]]}

    def lfs_batch(self, request: Request, repo: str) -> dict[str, Any]:
        self._may_write(request, repo.split("/")[0])
        objects = []
        for entry in json.loads(request.body)["objects"]:
            if entry["oid"] not in self.blobs:
                verify = {"href": f"{self.url}/lfs-verify/{entry['oid']}"}
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}, "verify": verify}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, request: Request, oid: str) -> dict[str, Any]:
        if request.token is not None:
            raise Refusal(400, "presigned addresses take no Authorization header")
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "the bytes do not have the announced sha256")
        self.blobs[oid] = request.body
        return {}

    def lfs_verify(self, request: Request, oid: str) -> dict[str, Any]:
        if len(self.blobs.get(oid, b"")) != json.loads(request.body)["size"]:
            raise Refusal(400, "size differs")
        return {}

    def commit(self, request: Request, repo: str, revision: str) -> dict[str, Any]:
        self._may_write(request, repo.split("/")[0])
        target = self._repo(request, repo)
        before = target.at(revision)
        header = json.loads(request.body.splitlines()[0])["value"]
        if header.get("parentCommit") not in (None, before.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files, lfs, message = dict(before.files), set(before.lfs), ""
        for line in request.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                lfs.discard(value["path"])
            elif item["key"] == "lfsFile" and value["oid"] in self.blobs:
                files[value["path"]] = self.blobs[value["oid"]]
                lfs.add(value["path"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise Refusal(400, f"cannot do {item['key']} {value}")
        oid = hashlib.sha1(request.body + before.oid.encode()).hexdigest()
        target.commits.append(Commit(oid, message, files, frozenset(lfs), header.get("description", "")))
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"}
        if "create_pr=1" in request.query:
            number = 1 + sum(name.startswith("refs/pr/") for name in target.branches)
            target.branches[f"refs/pr/{number}"] = oid
            return {**answer, "pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"}
        target.branches[revision] = oid
        return answer

    def create_tag(self, request: Request, repo: str, revision: str) -> dict[str, Any]:
        self._may_write(request, repo.split("/")[0])
        target, name = self._repo(request, repo), json.loads(request.body)["tag"]
        if name in target.branches:
            raise Refusal(409, "Reference already exists")
        target.branches[name] = target.at(revision).oid
        return {}

    def list_commits(self, request: Request, repo: str, revision: str) -> list[dict[str, Any]]:
        target = self._repo(request, repo)
        head = target.at(revision)
        made = target.commits[: target.commits.index(head) + 1] if head in target.commits else []
        date = "2026-01-01T00:00:00.000Z"
        return [
            {"id": c.oid, "title": c.message, "message": c.description, "authors": [], "date": date}
            for c in made[::-1]
        ]

    def create_branch(self, request: Request, repo: str, revision: str) -> dict[str, Any]:
        self._may_write(request, repo.split("/")[0])
        target = self._repo(request, repo)
        target.branches[revision] = target.branches["main"]
        return {}

    def model_info(self, request: Request, repo: str, revision: str = "main") -> dict[str, Any]:
        target = self._repo(request, repo)
        commit = target.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        owner = repo.split("/")[0]
        found = {"id": repo, "author": owner, "sha": commit.oid, "private": target.private, "siblings": siblings}
        front = re.match(rb"---\n(.*?)\n---\n", commit.files.get("README.md", b""), re.DOTALL)
        return {**found, "cardData": yaml.safe_load(front.group(1))} if front else found

    def tree(self, request: Request, repo: str, revision: str, folder: str = "") -> list[dict[str, Any]]:
        commit = self._repo(request, repo).at(revision)
        return [_tree_entry(commit, path) for path in sorted(commit.files) if path.startswith(folder)]

    def resolve(self, request: Request, repo: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        commit = self._repo(request, repo).at(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return commit.files[path], {"X-Repo-Commit": commit.oid, "ETag": f'"{_oid(commit, path)}"'}

    def _may_write(self, request: Request, owner: str) -> None:
        if request.token is None:
            raise Refusal(401, "Invalid username or password.")
        if request.token != self.token:
            raise Refusal(403, "Forbidden: you must use a write token to write to a repo.")
        if owner not in {self.user, *self.organisations}:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")

    def _repo(self, request: Request, repo: str) -> Repo:
        found = self.repos.get(repo)
        if found is None or (found.private and request.token is None):
            raise Refusal(404 if request.token else 401, "Repository not found", "RepoNotFound")
        return found


def _upload_mode(there: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    path = entry["path"]
    is_lfs = path.endswith((".safetensors", ".bin", ".onnx")) or b"\0" in base64.b64decode(entry["sample"])
    answer = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
    return {**answer, "oid": _oid(there, path)} if path in there.files else answer


def _oid(commit: Commit, path: str) -> str:
    data = commit.files[path]
    if path in commit.lfs:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(commit: Commit, path: str) -> dict[str, Any]:
    size, oid = len(commit.files[path]), _oid(commit, path)
    entry = {"type": "file", "path": path, "size": size, "oid": oid}
    return {**entry, "lfs": {"oid": oid, "size": size, "pointerSize": 134}} if path in commit.lfs else entry


ROUTES: list[Route] = [
    ("GET", "/api/whoami-v2", HubServer.whoami),
    ("POST", "/api/repos/create", HubServer.create_repo),
    ("POST", "/api/validate-yaml", HubServer.validate_yaml),
    ("POST", f"/api/models/{ID}/preupload/{REVISION}", HubServer.preupload),
    ("POST", f"/api/models/{ID}/commit/{REVISION}", HubServer.commit),
    ("POST", f"/api/models/{ID}/branch/{REVISION}", HubServer.create_branch),
    ("POST", f"/api/models/{ID}/tag/{REVISION}", HubServer.create_tag),
    ("GET", f"/api/models/{ID}/commits/{REVISION}", HubServer.list_commits),
    ("GET", f"/api/models/{ID}/tree/{REVISION}(?:/(?P<folder>.+))?", HubServer.tree),
    ("GET", f"/api/models/{ID}(?:/revision/{REVISION})?", HubServer.model_info),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", HubServer.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", HubServer.lfs_put),
    ("POST", r"/lfs-verify/(?P<oid>\w+)", HubServer.lfs_verify),
    ("GET", f"/{ID}/resolve/{REVISION}/(?P<path>.+)", HubServer.resolve),
]


def use_hub(server: HubServer, monkeypatch: Any, home: Any) -> None:
    """Point this process's huggingface_hub, and what it starts, at `server` until `monkeypatch` undoes it.

    huggingface_hub reads its environment when it is imported, so the constants it keeps are set as well.
    """
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": server.token, "NO_PROXY": "127.0.0.1"}
    for name, value in {**settings, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name, part in {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token"}.items():
        monkeypatch.setattr(constants, name, str(home / part))
    # `huggingface_hub.create_repo` and its like are methods of this one object, made at import.
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    # transformers keeps a client of its own, made at its first use.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    # A client made before may hold connections to a server that is gone.
    close_session()
