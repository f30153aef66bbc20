"""SIGKILL and SIGTERM at random moments of every kind of run: nothing is lost, and the reruns end the same."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hub.folders import read_folder
from hub.hub_server import HubServer, use_hub

from hf_compress.training.checkpoint import last_complete_checkpoint

from .conftest import Runs

# How many kills of each kind of run must arrive before its end.
KILLS = {
    "train": 12, "cache": 8, "oneshot": 9, "oneshot in memory": 3, "quantize": 5, "export": 4, "push": 6, "recipe": 5,
}  # fmt: skip
IN_A_ROW = 3
MASKS = ["pruning_state.safetensors", "distillation_state.safetensors"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        use_hub(server, patch, tmp_path_factory.mktemp("home"))
        yield server


@pytest.fixture(scope="module")
def runs(tmp_path_factory, hub) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


def progress(run: str, folder: Path) -> int:
    """Count what is complete, which no kill may take away."""
    if run == "train":
        whole = last_complete_checkpoint(folder / "work", files=MASKS)
        return 0 if whole is None else int(whole.name.rsplit("-")[-1])
    if run == "cache":
        return len([p for p in (folder / "out").glob("part-*") if not p.name.endswith(".tmp")])
    if run == "oneshot":
        state = folder / "out.part" / "state.json"
        return len(json.loads(state.read_text())["done"]) if state.exists() else 0
    return len(list((folder / "out" / "state").glob("*.json")))


def made(run: str, folder: Path, hub: HubServer) -> dict[str, bytes] | None:
    """Return what has the final name; None if nothing has."""
    if run == "push":
        repo = hub.repos.get(f"tester/{folder.name}")
        assert repo is None or len(repo.commits) <= 1
        return hub.files(f"tester/{folder.name}") if repo is not None and repo.commits else None
    out = folder / "out"
    if run == "cache":
        manifest = out / "teacher_cache.json"
        return read_folder(out) if manifest.exists() and json.loads(manifest.read_text())["complete"] else None
    if run == "recipe":
        # Records and cards hold measured times.
        names = [
            f"{stage}/{name}" for stage in ("teacher", "student") for name in ("model.safetensors", "config.json")
        ]
        done = (out / "state" / "report.json").exists()
        return {name: (out / name).read_bytes() for name in names} if done else None
    return read_folder(out) if out.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize("run", KILLS)
def test_killed_at_random_moments_and_run_again_it_ends_as_if_undisturbed(runs, hub, run):
    whole, random = runs.whole(run), Random(run)
    expected, landed, number = made(run, whole["folder"], hub), 0, 0
    assert expected
    while landed < KILLS[run]:
        number += 1
        assert number <= 10 * KILLS[run], "the runs end before they are killed"
        folder = runs.folder / f"{run.replace(' ', '-')}-{number}"
        for _ in range(min(IN_A_ROW, KILLS[run] - landed)):
            before = progress(run, folder)
            how = {"signal": random.choice([signal.SIGKILL, signal.SIGTERM])}
            how["after"] = random.uniform(0, whole["seconds"])
            ended = runs.ask(run, folder, **how)
            assert ended["status"] in (0, -how["signal"]), ended["text"]
            landed += ended["status"] != 0
            found = made(run, folder, hub)
            after = progress(run, folder)
            print(
                f"{run} {number}: {how['signal'].name} after {how['after']:.2f} s, status {ended['status']}, "
                f"complete {before} -> {after}, result {'there' if found else 'not there'}"
            )
            # What has the final name is whole.
            assert found in (None, expected)
            if found is not None:
                break
            assert after >= before
        if made(run, folder, hub) is None:
            again = runs.ask(run, folder)
            assert again["status"] == 0, again["text"]
        assert made(run, folder, hub) == expected
    print(f"{run}: {landed} kills, {number} results, all equal to the undisturbed one")


def test_there_are_enough_kills_of_every_kind_of_run():
    from .runs import RUNS

    assert sum(KILLS.values()) >= 50
    # Runs of several processes have a test of their own.
    assert set(KILLS) == set(RUNS) - {"ranks"}
