"""Settings for all tests: no network, few threads, a clean random state."""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import functools
import logging
import sys

import pytest
import torch
from seen import SEEN

# What stands between a call of ours and the line that logs. Not PEFT: what it calls is its own affair, and 0.20 uses
# an old name of transformers 5.17.
LIBRARIES = ("logging", "transformers", "accelerate", "datasets", "huggingface_hub", "torch")


class OwnDeprecations(logging.Handler):
    """Raises where a library logs that what our own code calls is deprecated (pyproject.toml does so for warnings)."""

    def emit(self, record):
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in LIBRARIES:
            frame = frame.f_back
        is_ours = frame is not None and frame.f_globals.get("__name__", "").startswith("hf_compress")
        if is_ours and "deprecated" in record.getMessage():
            raise FutureWarning(record.getMessage())


def pytest_configure():
    logging.getLogger("transformers").addHandler(OwnDeprecations())


@pytest.fixture(autouse=True)
def _same_start():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def quick_measures(monkeypatch):
    """Measure only a moment, and no memory, for which each model is loaded in a process of its own."""
    from hf_compress.measurement import api

    short = functools.partial(api.measure, memory=False, batch_sizes=(1,), warmup=1, rounds=1, seconds=0.01)
    monkeypatch.setattr(api, "measure", short)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seen"] = dict(SEEN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    SEEN.update(getattr(node, "workeroutput", {}).get("seen", {}))


def pytest_terminal_summary(terminalreporter):
    if SEEN:
        terminalreporter.write_line(f"{sum(SEEN.values())} generated bad inputs: {dict(SEEN)}")
