"""No room on the disk, here as a limit on the size of files: one error, nothing half-written, the rerun goes on."""

import contextlib

import pytest
import tiny
import torch
from architectures import build
from hub.folders import read_folder
from oneshot_runs import rows
from transformers import TrainerCallback

from hf_compress import (
    CacheConfig,
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    OneShotConfig,
    PruningConfig,
    cache_teacher,
    export,
    prune_oneshot,
    quantize,
)
from hf_compress.errors import DiskFullError, HfCompressError
from hf_compress.training.checkpoint import last_complete_checkpoint

resource = pytest.importorskip("resource")
# What is printed goes to memory: standard error may be a long file, which finds no room either.
pytestmark = pytest.mark.usefixtures("capsys")


def set_room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def room_for(size):
    """No file gets longer than `size` bytes: the system refuses what is more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    set_room(size)
    try:
        yield
    finally:
        set_room(before)


def make_trainer(folder, callbacks=(), **changes):
    options = {"save_strategy": "steps", "save_steps": 3, **changes}
    return CompressionTrainer(
        tiny.bert(0, dropout=0.1),
        tiny.arguments(folder / "work", **options),
        compression=CompressionConfig(DistillationConfig(), PruningConfig(structure="ffn", sparsity=0.5, frequency=2)),
        teacher=tiny.bert(1),
        train_dataset=tiny.sentences(),
        callbacks=list(callbacks),
    )


BATCHES = [{"input_ids": part} for part in rows().split(4)]


def save_compressed(folder):
    make_trainer(folder).save_compressed(folder / "out")


def to_onnx(folder):
    export(tiny.bert(0), "onnx", folder / "out")


def to_cache(folder):
    config = CacheConfig(batch_size=1, top_k=4)
    cache_teacher(tiny.llama(1), tiny.texts(100), folder / "out", config, progress=False, device="cpu")


def prune(model, folder):
    prune_oneshot(model, OneShotConfig(sparsity=0.5), BATCHES, folder / "out", device="cpu")


CALLS = {
    "save_compressed": save_compressed,
    "quantize": lambda folder: quantize(folder.parent / "dense", folder / "out"),
    "prune_oneshot": lambda folder: prune(build("llama"), folder),
    "prune_oneshot from a folder": lambda folder: prune(folder.parent / "dense", folder),
    "cache_teacher": to_cache,
    "export": pytest.param(to_onnx, marks=pytest.mark.slow),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_there_is_one_error_and_no_result_and_with_room_again_the_whole_one(tmp_path, call):
    full, free = tmp_path / "full", tmp_path / "free"
    build("llama").save_pretrained(tmp_path / "dense")
    message = r"no room left on the disk \(.*\): .*out .*free some space"
    with pytest.raises(DiskFullError, match=message) as caught, room_for(3000):
        call(full)
    assert isinstance(caught.value, HfCompressError)
    assert isinstance(caught.value, OSError)
    if call is not to_cache:
        assert not (full / "out").exists()
    call(full)
    call(free)
    assert read_folder(full) == read_folder(free)


class NoRoom(TrainerCallback):
    """From a step on there is room for `size` bytes a file."""

    def __init__(self, step, size):
        self.step, self.size = step, size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            set_room(self.size)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_finds_no_room_leaves_those_before_and_the_run_goes_on_from_there(tmp_path, name):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "whole" / "work" / "checkpoint-6").iterdir()}
    trainer = make_trainer(tmp_path, [NoRoom(4, sizes[name] - 100)])
    with room_for(resource.RLIM_INFINITY):
        with pytest.raises(DiskFullError, match="work holds the checkpoints that were whole .* save_total_limit"):
            trainer.train()
    needs = {"files": trainer.checkpoint_files}
    assert last_complete_checkpoint(tmp_path / "work", **needs).name == "checkpoint-3"
    again = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
