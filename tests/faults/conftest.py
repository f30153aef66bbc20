"""The `runs` fixture: runs of every kind in processes of their own, and what each makes when nothing disturbs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("runs.py")


class Runs:
    """Asks runs.py; `folder` holds a folder for each run and the models that they start from."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux":
            pytest.skip("runs are forked and timed as Linux does it")
        self.folder = folder
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._server = subprocess.Popen([sys.executable, SERVER], **pipes, text=True)
        self._whole: dict[str, dict[str, Any]] = {}
        assert self._server.stdout.readline() == "ready\n"
        self.ask("prepare", folder)

    def ask(self, run: str, folder: Path, **ending: Any) -> dict[str, Any]:
        """Do a run until it ends or is ended; see runs.py."""
        self._server.stdin.write(json.dumps({"run": run, "folder": str(folder), **ending}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def whole(self, run: str) -> dict[str, Any]:
        """Return what a run answers that nothing disturbs, and its `folder`; it is done once."""
        if run not in self._whole:
            folder = self.folder / f"{run.replace(' ', '-')}-whole"
            self._whole[run] = {**self.ask(run, folder), "folder": folder}
            assert self._whole[run]["status"] == 0, self._whole[run]["text"]
        return self._whole[run]

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("runs"))
    yield made
    made.close()
