"""Files of state with wrong bytes in them: masks, caches, indices. Refused, and nothing half taken over."""

import atexit
import functools
import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save_file

from hf_compress.distillation.cache import cache_teacher
from hf_compress.distillation.cache_file import MANIFEST, CacheReader, CacheWriter
from hf_compress.errors import CheckpointError, HfCompressError
from hf_compress.pruning.checkpoint import STATE_FILE, load_pruning_state, save_pruning_state
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner
from hf_compress.training.checkpoint import checkpoint_faults

from .inputs import JSON, bad_inputs, refused

LIES = [0, 1, 7, 2**20, 2**31, 2**63 - 1, 2**64 - 1]


@st.composite
def changes(draw):
    """What is done to the bytes of a file: cuts, flips, insertions, lies about the length of its header."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "lie", "header", "empty"]))
    return (
        kind,
        draw(st.floats(0, 1)),
        draw(st.binary(min_size=1, max_size=6)),
        draw(st.sampled_from(LIES)),
        draw(JSON),
    )


def changed(data, change):
    kind, where, piece, lie, junk = change
    at = int(where * (len(data) - 1))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (piece[0] or 1)]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + piece + data[at:]
    if kind == "lie":
        return struct.pack("<Q", lie) + data[8:]
    if kind == "header":
        text = json.dumps(junk).encode()
        return struct.pack("<Q", len(text)) + text + data[8:]
    return b""


def pruner_of(model):
    config = PruningConfig(sparsity=0.5, criterion="movement", regrow=True, begin=0.0, end=0.5, frequency=1)
    pruner = Pruner(config)
    pruner.attach(model)
    return pruner


def write_state(folder):
    """Write the state of a pruner in the middle of a run, with masks, shadows and scores."""
    model = tiny.bert()
    pruner = pruner_of(model)
    pruner.start(10)
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        pruner.before_step(step)
        pruner.step(step)
    save_pruning_state(pruner, folder)
    return model


class Saved:
    """What the properties of this file change: made once, by the first of them."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())
        self.model = write_state(self.folder)
        self.state = (self.folder / STATE_FILE).read_bytes()
        cache_teacher(tiny.bert(1), tiny.sentences(8), self.folder / "cache", progress=False)
        self.cached = {
            p.relative_to(self.folder): p.read_bytes() for p in self.folder.rglob("cache/**/*") if p.is_file()
        }


@functools.cache
def saved():
    made = Saved()
    atexit.register(shutil.rmtree, made.folder)
    return made


def load_changed(data):
    """Load a state file with these bytes; whatever comes of it, refused means that nothing was taken over."""
    (saved().folder / STATE_FILE).write_bytes(data)
    pruner = pruner_of(saved().model)
    result = refused(load_pruning_state, pruner, saved().folder)
    if isinstance(result, CheckpointError):
        assert not pruner.masks
        assert not pruner.running
    list(checkpoint_faults(saved().folder, optimizer=False, files=[STATE_FILE]))
    return result


FOUND = [("header", 0.0, b"\0", 0, {"": None}), ("header", 0.0, b"\0", 0, None), ("lie", 0.0, b"\0", 2**63 - 1, None)]


@bad_inputs(changes(), known=FOUND, few=100, many=1500)
def test_changed_bytes_of_masks_are_refused_or_harmless(change):
    load_changed(changed(saved().state, change))


@st.composite
def other_tensors(draw):
    """Names in the file and what becomes of them: dropped, of another type or shape, under another name."""
    return draw(
        st.lists(
            st.tuples(
                st.integers(0, 60),
                st.sampled_from(["drop", "rename", "flat", "short", "scalar", "empty"]),
                st.sampled_from(
                    [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
                ),
            ),
            min_size=1,
            max_size=3,
        )
    )


@bad_inputs(other_tensors(), known=[[(27, "flat", torch.bfloat16)]], few=100, many=1500)
def test_tensors_that_do_not_fit_are_refused(steps):
    tensors, metadata = (
        load(saved().state),
        {"pruning": json.dumps(pruner_of(saved().model).config.to_dict(), sort_keys=True)},
    )
    for number, action, dtype in steps:
        name = sorted(tensors)[number % len(tensors)]
        tensor = tensors.pop(name)
        if action == "drop":
            continue
        shapes = {"flat": lambda t: t.flatten(), "short": lambda t: t.flatten()[1:], "scalar": lambda t: t.sum(),
                  "empty": lambda t: t.flatten()[:0], "rename": lambda t: t}  # fmt: skip
        tensors[name + "x" * (action == "rename")] = shapes[action](tensor).to(dtype).contiguous()
    path = saved().folder / "changed.safetensors"
    save_file(tensors or {"x": torch.zeros(1)}, path, metadata=metadata)
    load_changed(path.read_bytes())


def test_a_state_that_was_not_changed_is_taken_over():
    assert load_changed(saved().state) is None


@bad_inputs(st.tuples(st.integers(0, 20), changes()), few=60, many=700)
def test_a_changed_byte_of_a_teachers_cache_is_refused(value):
    number, change = value
    names = sorted(saved().cached)
    name = names[number % len(names)]
    data = changed(saved().cached[name], change)
    path = saved().folder / name
    path.write_bytes(data)
    try:
        result = refused(CacheReader, saved().folder / "cache")
        again = refused(CacheWriter, saved().folder / "cache", {"teacher": "another"}, False)
    finally:
        path.write_bytes(saved().cached[name])
    if data != saved().cached[name] and name.name != MANIFEST:
        assert isinstance(result, CheckpointError)
    assert isinstance(again, HfCompressError)


def test_a_cache_that_lost_its_parts_is_refused():
    assert isinstance(CacheReader(saved().folder / "cache"), CacheReader)
    for part in (saved().folder / "cache").glob("part-*"):
        part.rename(part.with_name("gone"))
        with pytest.raises(CheckpointError, match="lost its parts"):
            CacheReader(saved().folder / "cache")
        part.with_name("gone").rename(part)


@pytest.mark.parametrize(
    "index", [None, [], {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../../x.safetensors"}},
              {"weight_map": {"a": "/etc/passwd"}}],
)  # fmt: skip
def test_a_bad_index_makes_a_checkpoint_no_whole_one(index, tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert not list(checkpoint_faults(tmp_path, optimizer=False))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert any("index.json" in fault for fault in checkpoint_faults(tmp_path, optimizer=False))
