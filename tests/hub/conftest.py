"""The `hub` fixture: a local Hub that the client in this process talks to, and no other; `model` is a clean folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .folders import write_model
from .hub_server import HubServer, use_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path / "hf_home")
        monkeypatch.setattr("hf_compress.hub.attempts.WAITS", (0.0, 0.0, 0.0, 0.0))
        # What the client repeats by itself waits as long as it likes otherwise.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")
