"""Model folders for the tests of this folder: small, complete, and clean until a test plants something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CARD = "---\nlicense: apache-2.0\nbase_model: someone/base\n---\n\n# A model\n"


def write_model(folder: Path) -> Path:
    """Write a small model to `folder`: config, weights, tokenizer, card, and a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    (folder / "README.md").write_text(CARD)
    (folder / "vocab.txt").write_text("[PAD]\nhf_hub\n/root/\n/home/\nsk-learn\n/home/me/\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    save_file({"weight": np.arange(64, dtype=np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of every file below `folder`."""
    return {str(p.relative_to(folder).as_posix()): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
