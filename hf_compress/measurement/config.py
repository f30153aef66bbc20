"""Options of `measure`.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options


@dataclass(frozen=True)
class MeasureSettings(Options):
    """Which models are compared and how speed and memory are measured."""

    baseline: str | None = field(default=None, metadata={"help": "name of the model to compare with; none: the first"})
    result: str | None = field(default=None, metadata={"help": "name of the compressed model; none: the last"})
    batch_sizes: tuple[int, ...] = field(default=(1, 32), metadata={"help": "examples in one forward pass, each >= 1"})
    length: int | None = field(
        default=None,
        metadata={
            "help": "size of one dummy input: tokens (128 if none), audio samples (16000 if none), or the side of an "
            "image in pixels where the config does not fix it (224 if none)"
        },
    )
    warmup: int = field(default=5, metadata={"help": "forward passes before timing, per model and batch size, >= 0"})
    rounds: int = field(default=10, metadata={"help": "timed samples per model and batch size, at least; >= 1"})
    seconds: float = field(
        default=2.0, metadata={"help": "sampling goes on until this many seconds per model and batch size; >= 0"}
    )
    blocks: int = field(
        default=5,
        metadata={"help": "the samples are taken in so many blocks, a second apart, to see slow drift; >= 1"},
    )
    memory: bool = field(default=True, metadata={"help": "measure peak memory, each model in a process of its own"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not self.batch_sizes or min(self.batch_sizes) < 1 or len(set(self.batch_sizes)) < len(self.batch_sizes):
            yield f"batch_sizes must be different whole numbers from 1, found {list(self.batch_sizes)}"
        if self.length is not None and self.length < 1:
            yield f"length must be at least 1, found {self.length}"
        if self.warmup < 0:
            yield f"warmup must be at least 0 forward passes, found {self.warmup}"
        if self.rounds < 1:
            yield f"rounds must be at least 1 sample, found {self.rounds}"
        if self.blocks < 1:
            yield f"blocks must be at least 1, found {self.blocks}"
        if not self.seconds >= 0:
            yield f"seconds must be at least 0, found {self.seconds}"
        if self.baseline is not None and self.baseline == self.result:
            yield f"baseline and result must be two models, found {self.baseline!r} for both"
