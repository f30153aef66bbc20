"""Child processes without the wait for their imports: one process imports a script and forks for each of its runs.

A run is a process of its own still: it can be killed, and what it changes is gone with it.
`python forks.py SCRIPT` reads one run a line, [file for its output, argument...], and answers how the process ended.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LIMIT = 300  # seconds that a run may take


class Forks:
    """Runs `main` of a script; each object has an import, a seed of hashes and a state of `random` of its own."""

    def __init__(self, script: Path, folder: Path) -> None:
        self._log = folder / "output"
        command = [sys.executable, __file__, script]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run main(*arguments) to its end; both streams are in `stderr`."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps([str(self._log), *map(str, arguments)]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, "", self._log.read_text())

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate()


@contextlib.contextmanager
def two_forks(
    script: Path, folders: pytest.TempPathFactory
) -> Iterator[list[Callable[..., subprocess.CompletedProcess[str]]]]:
    """Give the `run` of two, so that a run can be continued by what shares no more with it than two commands do."""
    both = [Forks(script, folders.mktemp(name)) for name in ("first", "again")]
    yield [forks.run for forks in both]
    for forks in both:
        forks.close()


def run(main: Callable[..., None], output: str, arguments: list[str]) -> None:
    """Call main and leave this process, without the clean-up of an interpreter that it shares with its parent."""
    signal.alarm(LIMIT)
    with open(output, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 0
    try:
        main(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(script: str) -> None:
    """Import the script, then fork for each line that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = importlib.util.spec_from_file_location("script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            run(module.main, output, arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
