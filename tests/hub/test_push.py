"""Pushes to a local Hub: what arrives, what is refused, and what each failure says."""

from __future__ import annotations

import json
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_compress.errors import ConfigError, HubError, PushRefusedError
from hf_compress.hub.push import push

from .folders import read_folder
from .hub_server import Commit, HubServer

REPO = "tester/small"


def test_what_arrives_is_what_is_in_the_folder_in_one_commit(hub: HubServer, model: Path) -> None:
    result = push(model, REPO, commit_message="A smaller model")
    assert hub.files(REPO) == read_folder(model)
    (commit,) = hub.commits(REPO)
    assert commit.message == "A smaller model"
    assert commit.lfs == {"model.safetensors"}
    assert (result.repo_id, result.endpoint, result.oid, result.dry_run) == (REPO, hub.url, commit.oid, False)
    assert result.commit_url == f"{hub.url}/{REPO}/commit/{commit.oid}"
    assert result.notes == ()


def test_what_was_pushed_can_be_downloaded(hub: HubServer, model: Path) -> None:
    from huggingface_hub import snapshot_download

    push(model, REPO)
    assert read_folder(Path(snapshot_download(REPO, endpoint=hub.url))) == read_folder(model)


def test_dry_run_asks_nothing_and_lists_what_a_push_sends(hub: HubServer, model: Path) -> None:
    (model / "training_args.bin").write_bytes(pickle.dumps({}))
    (model / "checkpoint-1").mkdir()
    (model / "checkpoint-1" / "optimizer.pt").write_bytes(pickle.dumps({}))
    dry = push(model, REPO, dry_run=True)
    assert hub.requests == []
    sent = push(model, REPO)
    assert dry.files == sent.files
    assert dict(dry.files) == {p: len(data) for p, data in hub.files(REPO).items()}
    assert {path for path, _ in dry.left_out} == {"training_args.bin", "checkpoint-1/"}
    assert dry.dry_run
    assert dry.oid is dry.commit_url is None


def test_results_are_readable_and_plain(hub: HubServer, model: Path) -> None:
    (model / "README.md").unlink()
    (model / "trainer_state.json").write_text("{}")
    result = push(model, "small", token=hub.token)
    assert json.loads(json.dumps(result.to_dict()))["files"][0] == {"path": "1_Pooling/config.json", "size": 2}
    text = result.to_text()
    for part in ("sent 4 files", REPO, hub.url, "config.json", "trainer_state.json (training state", "no README.md"):
        assert part in text
    for shown in (text, repr(result), json.dumps(result.to_dict())):
        assert hub.token not in shown
    (model / "model.safetensors").unlink()
    assert "would send" in push(model, REPO, dry_run=True).to_text()
    assert push(model, REPO, dry_run=True).notes[1:] == ("there are no weights",)


def test_a_second_push_sends_only_what_changed(hub: HubServer, model: Path) -> None:
    first = push(model, REPO)
    assert push(model, REPO).oid == first.oid
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    push(model, REPO)
    assert len(hub.commits(REPO)) == 2
    assert hub.files(REPO) == read_folder(model)
    assert sum(r.method == "PUT" for r in hub.requests) == 1


def test_branches(hub: HubServer, model: Path) -> None:
    with pytest.raises(HubError, match="no such repo"):
        push(model, REPO, revision="v2")
    push(model, REPO)
    with pytest.raises(HubError, match="create it first"):
        push(model, REPO, revision="v2")
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url).create_branch(REPO, branch="v2")
    (model / "config.json").write_text('{"model_type": "bert"}')
    assert push(model, REPO, revision="v2").revision == "v2"
    assert hub.files(REPO, "v2") == read_folder(model) != hub.files(REPO)


def test_a_missing_branch_leaves_no_empty_repo(hub: HubServer, model: Path) -> None:
    with pytest.raises(HubError):
        push(model, REPO, revision="v2")
    assert hub.repos == {}


def test_private(hub: HubServer, model: Path) -> None:
    push(model, REPO, private=True)
    assert hub.repos[REPO].private
    push(model, "tester/open")
    with pytest.raises(HubError, match="found it public; nothing was sent"):
        push(model, "tester/open", private=True)
    assert len(hub.commits("tester/open")) == 1


def test_servers_without_xet(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    push(model, REPO)
    assert hub.files(REPO) == read_folder(model)
    assert len(hub.commits(REPO)) == 1


BAD_FILES = {
    "pickle": ("model.safetensors", pickle.dumps([1]), "a pickle"),
    "token": ("config.json", b'{"t": "hf_' + b"aB3" * 11 + b'"}', "an access token"),
    "home path": ("config.json", b'{"p": "/home/jane/x"}', "home folder"),
    "python": ("x.py", b"", "auto_map"),
    "metadata": ("README.md", b"---\nlicense: 2\n---\n", "license: expected"),
    "encoding": ("README.md", b"\xff\xfe", "expected UTF-8"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("dry_run", [True, False])
def test_refused_before_any_request(hub: HubServer, model: Path, kind: str, dry_run: bool) -> None:
    name, data, message = BAD_FILES[kind]
    (model / name).write_bytes(data)
    with pytest.raises(PushRefusedError, match=message) as caught:
        push(model, REPO, dry_run=dry_run)
    assert name in str(caught.value)
    assert hub.requests == []
    assert hub.repos == {}


def test_all_problems_are_in_one_error(hub: HubServer, model: Path) -> None:
    for name, data, _ in BAD_FILES.values():
        (model / name).write_bytes(data)
    (model / "out.json").symlink_to("/etc/hostname")
    with pytest.raises(PushRefusedError, match="5 problem") as caught:
        push(model, REPO)
    for name in ("model.safetensors", "config.json", "x.py", "README.md", "out.json"):
        assert f"  {name}: " in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "1_Pooling/config.json", "empty"])
def test_what_is_no_model_folder_is_refused(hub: HubServer, model: Path, name: str) -> None:
    (model / "empty").mkdir()
    with pytest.raises(PushRefusedError, match=r"expected a model folder with config\.json"):
        push(model / name, REPO)


def test_adapters_are_models(hub: HubServer, model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")
    with pytest.raises(PushRefusedError, match="push the base first"):
        push(model, REPO)
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    push(model, REPO)
    assert hub.files(REPO) == read_folder(model)


@pytest.mark.parametrize("name", ["a/b/c", "a b", "", "a--b", "tester/x.git"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_malformed_names(hub: HubServer, model: Path, name: str, dry_run: bool) -> None:
    with pytest.raises(HubError, match="expected a repo like"):
        push(model, name, dry_run=dry_run)
    assert hub.requests == []


def failed_push(hub: HubServer, folder: Path, repo_id: str = REPO, token: str | None = None) -> str:
    with pytest.raises(HubError) as caught:
        push(folder, repo_id, token=token)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = (
            None if error.__suppress_context__ and error.__cause__ is None else error.__cause__ or error.__context__
        )
    for secret in {hub.token, hub.read_only_token, token} - {None}:
        assert not any(secret in text for text in chain)
    return chain[0]


def test_wrong_token(hub: HubServer, model: Path) -> None:
    assert "hf auth login" in failed_push(hub, model, token="hf_" + "x" * 30)
    assert hub.repos == {}


def test_no_token(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN" in failed_push(hub, model)
    assert hub.repos == {}


@pytest.mark.parametrize("token", ["hf_secret\n", "hf_sécret12", "hf_ secret12", ""])
def test_malformed_token(hub: HubServer, model: Path, token: str) -> None:
    with pytest.raises(HubError, match="copy it again") as caught:
        push(model, REPO, token=token)
    assert "secret" not in str(caught.value)


def test_read_only_token(hub: HubServer, model: Path) -> None:
    assert "may not write there" in failed_push(hub, model, token=hub.read_only_token)
    push(model, REPO)
    (model / "config.json").write_text("{}")
    assert "may not write there" in failed_push(hub, model, token=hub.read_only_token)
    assert len(hub.commits(REPO)) == 1


def test_somebody_elses_name(hub: HubServer, model: Path) -> None:
    assert "use another name" in failed_push(hub, model, "google/small")


def test_an_organisation_that_one_may_write_to(hub: HubServer, model: Path) -> None:
    hub.organisations.add("lab")
    result = push(model, "lab/small", private=True)
    assert (result.repo_id, hub.files("lab/small")) == ("lab/small", read_folder(model))
    assert hub.repos["lab/small"].private
    hub.organisations.clear()
    (model / "config.json").write_text("{}")
    assert "use another name" in failed_push(hub, model, "lab/small")
    assert len(hub.commits("lab/small")) == 1


PAGE = b"<html><h1>Service Unavailable</h1></html>"
# Every request of a push of a model folder, with the kind of fault that the next tests put there.
STEPS = [
    "repos/create", r"models/tester/small$", "validate-yaml", "preupload", "objects/batch", "^/lfs/", "lfs-verify",
    "/commit/",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["503", "429", "cut", "lost"])
def test_a_passing_fault_at_any_request_is_waited_for(hub: HubServer, model: Path, step: str, fault: str) -> None:
    if fault in ("503", "429"):
        hub.fail_next(step, int(fault), PAGE, times=2)
    else:
        (hub.cut_next if fault == "cut" else hub.lose_next_answer)(step)
    result = push(model, REPO, commit_message="A smaller model")
    assert not hub.faults
    assert hub.files(REPO) == read_folder(model)
    (commit,) = hub.commits(REPO)
    assert result.oid == commit.oid


# The client goes on where the last check of a stored file gets no answer.
@pytest.mark.parametrize("step", [step for step in STEPS if step != "lfs-verify"])
def test_an_outage_at_any_request_leaves_the_old_revision_and_a_rerun_goes_on(
    hub: HubServer, model: Path, step: str
) -> None:
    push(model, REPO)
    before = hub.files(REPO)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-4] + b"\0\0\x80?")
    hub.fail_next(step, 503, PAGE, times=10**6)
    text = failed_push(hub, model)
    assert "push again" in text
    assert hub.files(REPO) == before
    assert len(hub.commits(REPO)) == 1
    hub.faults.clear()
    push(model, REPO)
    assert hub.files(REPO) == read_folder(model)


PUSHER = """
import sys
from hf_compress import push
push(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_push_killed_at_any_request_leaves_the_old_revision_and_a_rerun_goes_on(
    hub: HubServer, model: Path, step: str
) -> None:
    push(model, REPO)
    before = hub.files(REPO)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-4] + b"\0\0\x80?")
    started: list[subprocess.Popen[bytes]] = []

    def kill(request) -> None:
        # By now the client waits for the answer to this request, which comes when it is gone.
        if re.search(step, request.path):
            started[0].kill()
            started[0].wait()

    with hub.lock:
        started.append(subprocess.Popen([sys.executable, "-c", PUSHER, str(model), REPO]))
        hub.watch = kill
    assert started[0].wait(timeout=120) == -signal.SIGKILL
    hub.watch = lambda request: None
    if step == "/commit/":  # the server had the whole commit when the client died
        wait_until(lambda: hub.files(REPO) == read_folder(model))
    else:
        assert hub.files(REPO) == before
    push(model, REPO)
    assert hub.files(REPO) == read_folder(model)
    assert len(hub.commits(REPO)) == 2


def wait_until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def commit_theirs(hub: HubServer) -> None:
    target = hub.repos[REPO]
    target.commits.append(Commit("f" * 40, "Upload model", {"theirs": b"x"}, frozenset()))
    target.branches["main"] = "f" * 40
    hub.watch = lambda request: None


def test_a_branch_that_moved_meanwhile_is_not_overwritten(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    (model / "config.json").write_text('{"model_type": "bert"}')
    hub.watch = lambda request: commit_theirs(hub) if "/commit/" in request.path else None
    assert "the branch moved meanwhile" in failed_push(hub, model)
    assert hub.files(REPO) == {"theirs": b"x"}


def test_a_lost_answer_and_a_commit_of_someone_else_is_said(hub: HubServer, model: Path) -> None:
    push(model, REPO)
    (model / "config.json").write_text('{"model_type": "bert"}')
    hub.cut_next("/commit/")
    asked: list[str] = []

    def watch(request):
        asked.extend([request.path] if request.path == f"/api/models/{REPO}" else [])
        if len(asked) == 2:
            commit_theirs(hub)

    hub.watch = watch
    assert "nothing of this push is in it" in failed_push(hub, model)
    assert hub.files(REPO) == {"theirs": b"x"}


def test_a_pull_request_leaves_the_branch_alone(hub: HubServer, model: Path) -> None:
    first = push(model, REPO)
    (model / "config.json").write_text('{"model_type": "bert"}')
    result = push(model, REPO, create_pr=True)
    assert result.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert "pull request: " in result.to_text()
    assert hub.repos[REPO].branches["main"] == first.oid
    assert hub.files(REPO, "refs/pr/1") == read_folder(model)


def test_tags(hub: HubServer, model: Path) -> None:
    result = push(model, REPO, tag="v1")
    assert hub.repos[REPO].branches["v1"] == result.oid
    assert push(model, REPO, tag="v1", dry_run=True).oid is None
    (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(HubError, match="was pushed .* but it got no tag 'v1'"):
        push(model, REPO, tag="v1")
    assert hub.files(REPO) == read_folder(model)
    with pytest.raises(ConfigError, match="give tag or create_pr"):
        push(model, REPO, tag="v2", create_pr=True)


def test_a_portal_that_answers_everything(hub: HubServer, model: Path) -> None:
    hub.fail_next("repos/create", 200, b"<html>please log in to this network</html>", times=9)
    assert "no proxy answers in its place" in failed_push(hub, model)


def test_a_card_that_only_the_hub_refuses(hub: HubServer, model: Path) -> None:
    hub.fail_next("validate-yaml", 400, b'{"errors": [{"message": "unknown license"}]}', "application/json")
    text = failed_push(hub, model)
    assert "unknown license" in text
    assert "README" in text


def test_a_file_that_storage_refuses(hub: HubServer, model: Path) -> None:
    hub.fail_next("^/lfs/", 403, b"expired", "text/plain")
    assert "status 403" in failed_push(hub, model)
    assert hub.commits(REPO) == []


def test_server_down(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}/")
        assert "cannot be reached" in failed_push(hub, model)


@pytest.mark.parametrize("endpoint", ["not a url", "localhost:99", "http://[bad"])
def test_malformed_endpoint(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "HF_ENDPOINT" in failed_push(hub, model)


def test_offline_mode(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline mode" in failed_push(hub, model)


@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_server_that_repeats_the_token(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "file":
        from huggingface_hub import constants

        monkeypatch.delenv("HF_TOKEN")
        Path(constants.HF_HOME).mkdir(exist_ok=True)
        Path(constants.HF_TOKEN_PATH).write_text(hub.token + "\n")
    hub.fail_next("repos/create", 501, f"bad header Bearer {hub.token}".encode(), "text/plain")
    assert "Bearer ***" in failed_push(hub, model)
