"""`Record`: what was measured of one model, with everything needed to trust or repeat it; JSON in and out.

Level: base. Tables, plots and cards read records only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_compress.errors import RecordError

SCHEMA_VERSION = 1
ROLES = ("baseline", "intermediate", "result")


@dataclass(frozen=True)
class Measurement:
    """One number.

    Args:
        name: what was measured, e.g. "latency", "accuracy", "bytes_on_disk".
        value: the number; for timed quantities the median of `samples`.
        unit: its unit, e.g. "ms", "bytes", "fraction", "parameters".
        conditions: what it depends on, e.g. {"batch_size": 1, "device": "cpu", "dtype": "float32", "threads": 2}.
        samples: every repeat behind `value`; empty for what is counted rather than timed.
    """

    name: str
    value: float
    unit: str
    conditions: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _refuse_types(f"measurement {self.name!r}", self, {"name": str, "unit": str, "conditions": Mapping})
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            raise RecordError(f"measurement {self.name!r} must be a finite plain number, found {self.value!r}")
        # A numpy float is a float too, and would be dumped as a Python object.
        object.__setattr__(self, "value", self.value if isinstance(self.value, int) else float(self.value))
        try:
            samples = tuple(float(s) for s in self.samples)
        except (TypeError, ValueError) as error:
            raise RecordError(f"the samples of {self.name!r} must be numbers, found {self.samples!r}") from error
        if not all(math.isfinite(s) for s in samples):
            raise RecordError(f"the samples of {self.name!r} must be finite, found {samples}")
        object.__setattr__(self, "samples", samples)

    @property
    def spread(self) -> float | None:
        """Distance between the first and third quartile of the samples, in `unit`; None below 4 samples."""
        if len(self.samples) < 4:
            return None
        ordered = sorted(self.samples)
        return ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]

    def percentile(self, share: float) -> float | None:
        """Return the smallest sample that a `share` (0-1) of the samples do not exceed; None without samples."""
        if not self.samples:
            return None
        return sorted(self.samples)[max(0, math.ceil(share * len(self.samples)) - 1)]


@dataclass(frozen=True)
class Record:
    """All measurements of one model in one run.

    Args:
        model: short name, e.g. "teacher".
        role: "baseline", "intermediate" or "result".
        measurements: the numbers.
        environment: device, processor, threads, versions.
        dataset: id, revision, split and sample count behind the quality numbers; empty if there are none.
        seed: of the run; None if it had none.
        command: the command that made the record.
        method: what was done to the model, as plain data (configs, kept widths, training arguments).
        notes: sentences a reader must know, e.g. that this model is slower than the baseline.
    """

    model: str
    role: str
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    dataset: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    command: str = ""
    method: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        mappings = dict.fromkeys(("environment", "dataset", "method"), Mapping)
        _refuse_types(f"record of {self.model!r}", self, {"model": str, "command": str, **mappings})
        if self.role not in ROLES:
            raise RecordError(f"role must be one of {', '.join(ROLES)}, found {self.role!r}")
        object.__setattr__(self, "measurements", tuple(self.measurements))
        object.__setattr__(self, "notes", tuple(self.notes))
        if not all(isinstance(note, str) for note in self.notes):
            raise RecordError(f"the notes of {self.model!r} must be sentences, found {self.notes!r}")

    def get(self, name: str, **conditions: Any) -> Measurement:
        """Return the measurement called `name` whose conditions include the given ones.

        Raises:
            RecordError: if there is none or more than one.
        """
        found = self.find(name, **conditions)
        if len(found) != 1:
            known = sorted({m.name for m in self.measurements})
            raise RecordError(
                f"record of {self.model!r}: expected one measurement {name!r} with {conditions or 'any conditions'}, "
                f"found {len(found)}; it has {', '.join(known) or 'none'}"
            )
        return found[0]

    def find(self, name: str, **conditions: Any) -> list[Measurement]:
        """Return every measurement called `name` whose conditions include the given ones."""
        return [
            m
            for m in self.measurements
            if m.name == name and all(m.conditions.get(k) == v for k, v in conditions.items())
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Build from what `to_dict` gave.

        Raises:
            RecordError: if keys are missing or unknown, or the schema is newer than this version.
        """
        if not isinstance(data, Mapping) or data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version") if isinstance(data, Mapping) else type(data).__name__
            raise RecordError(f"expected a record of schema_version {SCHEMA_VERSION}, found {found!r}")
        try:
            measurements = tuple(Measurement(**m) for m in data["measurements"])
            return cls(**{**data, "measurements": measurements})
        except (TypeError, KeyError) as error:
            raise RecordError(f"not a record: {error}") from error


def _refuse_types(what: str, holder: Any, kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if not isinstance(getattr(holder, name), kind):
            wanted = "text" if kind is str else "a mapping"
            raise RecordError(f"{what}: {name} must be {wanted}, found {getattr(holder, name)!r}")


def save_record(record: Record, path: str | Path) -> Path:
    """Write `record` as JSON to `path`, whole or not at all.

    Raises:
        RecordError: if it holds something that JSON has no form for.
    """
    path = Path(path)
    try:
        text = json.dumps(record.to_dict(), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise RecordError(f"the record of {record.model!r} must hold plain finite data only: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


def load_record(path: str | Path) -> Record:
    """Read a record from a JSON file.

    Raises:
        RecordError: if the file is missing or holds no record.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} holds no record: {error}") from error
    try:
        return Record.from_dict(data)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def load_records(folder: str | Path) -> list[Record]:
    """Read every `*.json` record in `folder`: the baseline first, results last, by name in between.

    Raises:
        RecordError: if there is none.
    """
    records = [load_record(p) for p in sorted(Path(folder).glob("*.json"))]
    if not records:
        raise RecordError(f"{folder} holds no records (*.json); run a recipe or `hf-compress measure` first")
    return sort_records(records)


def sort_records(records: Iterable[Record]) -> list[Record]:
    """Order records: baseline, intermediates, results; otherwise as given."""
    return sorted(records, key=lambda r: ROLES.index(r.role))
