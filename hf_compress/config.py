"""`CompressionConfig`: everything that one run does to a model.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.distillation.config import DistillationConfig
from hf_compress.options import Options
from hf_compress.pruning.config import PruningConfig
from hf_compress.quantization.config import QuantizationConfig


@dataclass(frozen=True)
class CompressionConfig(Options):
    """Distillation and pruning happen in training; quantization after it, in `save_compressed`, or, aware, in both."""

    distillation: DistillationConfig | None = field(default=None, metadata={"help": "learn from a teacher"})
    pruning: PruningConfig | None = field(default=None, metadata={"help": "zero weights or units gradually"})
    quantization: QuantizationConfig | None = field(default=None, metadata={"help": "store weights in few bits"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid combination."""
        if self.distillation is None and self.pruning is None and self.quantization is None:
            yield "nothing to do: give at least one of distillation, pruning, quantization (or compression=None)"
