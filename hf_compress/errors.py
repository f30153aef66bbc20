"""Every error that hf_compress raises on purpose; each is also the built-in that a caller would expect.

Level: base. A message says what was expected, what was found and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HfCompressError(Exception):
    """Base of all errors raised by hf_compress."""


class ConfigError(HfCompressError, ValueError):
    """An option is unknown, out of range, or contradicts another."""


class TargetError(HfCompressError, ValueError):
    """A parameter pattern matches nothing, or nothing is left to compress."""


class ArchitectureError(HfCompressError, ValueError):
    """The model cannot be changed in the way asked for and still load in stock transformers."""


class TeacherError(HfCompressError, ValueError):
    """Teacher and student do not fit together."""


class SparsityError(HfCompressError, RuntimeError):
    """Weights do not have the zeros that were asked for."""


class CheckpointError(HfCompressError, RuntimeError):
    """A checkpoint is incomplete or was written with other settings."""


class QuantizationError(HfCompressError, RuntimeError):
    """A model cannot be quantized, or its saved form differs from what was quantized."""


class DivergedError(HfCompressError, ValueError):
    """Weights or scores are no finite numbers any more."""


class DiskFullError(HfCompressError, OSError):
    """There was no room for what had to be written."""


class DataError(HfCompressError, ValueError):
    """A dataset is missing, empty, or lacks a column."""


class RecordError(HfCompressError, ValueError):
    """A measurement record is malformed or a number that was asked for is not in it."""


class RecipeError(HfCompressError, ValueError):
    """A recipe cannot be run as written."""


class OutputExistsError(HfCompressError, FileExistsError):
    """The place to write to already holds something else."""


class PushRefusedError(HfCompressError, ValueError):
    """The folder holds something that must not leave this machine."""


class HubError(HfCompressError, RuntimeError):
    """The Hub did not do what was asked."""


class UnsupportedError(HfCompressError, RuntimeError):
    """The combination asked for is not supported by this version."""


class MissingDependencyError(HfCompressError, ImportError):
    """An optional package that a feature needs is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
