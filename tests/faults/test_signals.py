"""SIGTERM, Ctrl-C and the death of a process: what was complete stays, nothing half-written has the final name."""

import json
import signal

import pytest
from hub.folders import read_folder

from hf_compress.training.checkpoint import last_complete_checkpoint

MASKS = {"files": ["pruning_state.safetensors", "distillation_state.safetensors"]}


def checkpoint(folder, **needs):
    found = last_complete_checkpoint(folder / "work", **MASKS, **needs)
    return found and found.name


def blocks(folder):
    return len(json.loads((folder / "out.part" / "state.json").read_text())["done"])


def parts(folder):
    return len([p for p in (folder / "out").glob("part-*") if not p.name.endswith(".tmp")])


# The run, the function in which it gets the signal, at which call, and what must be complete then.
STEP, RENAME = "transformers:Trainer.training_step", "os:replace"
MOMENTS = {
    "in a step": ("train", STEP, 15, checkpoint, "checkpoint-6"),
    "while shrinking": ("train", "hf_compress.architecture.shrink:shrink", 1, checkpoint, "checkpoint-12"),
    # The manifest, then the checksums of each part and the part.
    "teacher": ("cache", RENAME, 6, parts, 2),
    "block": ("oneshot", "hf_compress.pruning.oneshot.api:_say", 2, blocks, 2),
    "joining blocks": ("oneshot", "os:link", 2, blocks, 4),
    "pruned": ("oneshot in memory", RENAME, 1, None, None),
    "quantized": ("quantize", RENAME, 1, None, None),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_gets_a_signal_keeps_what_is_complete_and_ends_as_if_undisturbed(runs, moment, number):
    run, at, call, complete, expected = MOMENTS[moment]
    whole = read_folder(runs.whole(run)["folder"] / "out")
    folder = runs.folder / f"{moment.replace(' ', '-')}-{number}"
    ended = runs.ask(run, folder, at=at, call=call, signal=number)
    assert ended["status"] == (130 if number == signal.SIGINT else -number), ended["text"]
    assert run == "cache" or not (folder / "out").exists()
    assert complete is None or complete(folder) == expected
    again = runs.ask(run, folder)
    assert again["status"] == 0, again["text"]
    assert read_folder(folder / "out") == whole
    # Nothing else is left, of either run.
    assert {p.name for p in folder.iterdir()} <= {"out", "work"}


def test_an_unfinished_cache_is_refused(runs):
    from hf_compress.distillation.cache_file import CacheReader
    from hf_compress.errors import CheckpointError

    folder = runs.folder / "unfinished"
    runs.ask("cache", folder, at=RENAME, call=4, signal=signal.SIGKILL)
    with pytest.raises(CheckpointError, match="not complete; call cache_teacher again"):
        CacheReader(folder / "out")


def test_when_a_process_of_two_dies_the_run_ends_and_says_so_and_resumes_to_the_same_weights(runs):
    whole = runs.whole("ranks")["folder"]
    folder = runs.folder / "ranks"
    ended = runs.ask("ranks", folder, at=STEP, call=8, signal=signal.SIGKILL)
    assert ended["status"] == 1
    # By the signal, or by the connection that the other process lost, whichever is seen first. Whether it is closed,
    # reset or cannot be written to is a matter of when; gloo ends each of these with the same sentence.
    assert "ChildFailedError" in ended["text"]
    lost = "Check the logs of the remote worker before reporting an error"
    assert "Signal 9 (SIGKILL)" in ended["text"] or lost in ended["text"]
    assert checkpoint(folder, world_size=2) == "checkpoint-6"
    again = runs.ask("ranks", folder)
    assert again["status"] == 0, again["text"]
    assert read_folder(folder / "out") == read_folder(whole / "out")
