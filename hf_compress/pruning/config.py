"""Options of gradual pruning.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options


@dataclass(frozen=True)
class PruningConfig(Options):
    """What to prune, how far and when; the help text of each field has its unit and range.

    The sparsity rises from `initial_sparsity` at `begin` to `sparsity` at `end` and then stays.
    """

    sparsity: float = field(default=0.5, metadata={"help": "final fraction of targets that is zero, 0-1 (1 excluded)"})
    structure: str = field(default="unstructured", metadata={"help": "what is zeroed together: unstructured, ffn"})
    criterion: str = field(default="magnitude", metadata={"help": "score by which the least important are found"})
    scope: str = field(
        default="uniform",
        metadata={"help": "uniform: the same sparsity in each target; global: one ranking over all targets"},
    )
    schedule: str = field(default="cubic", metadata={"help": "how sparsity rises: cubic, linear, constant"})
    initial_sparsity: float = field(default=0.0, metadata={"help": "sparsity at the first mask, 0 to sparsity"})
    begin: float = field(default=0.05, metadata={"help": "start of the rise, fraction of all optimizer steps, 0-1"})
    end: float = field(default=0.65, metadata={"help": "end of the rise, fraction of all optimizer steps, 0-1"})
    frequency: int = field(default=20, metadata={"help": "optimizer steps between two masks, at least 1"})
    include: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names to prune; empty: all linear weights"}
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names that are left alone"}
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not 0 <= self.sparsity < 1:
            yield f"sparsity must be at least 0 and below 1, found {self.sparsity}"
        if not 0 <= self.initial_sparsity <= max(self.sparsity, 0):
            yield f"initial_sparsity must lie between 0 and sparsity ({self.sparsity}), found {self.initial_sparsity}"
        if not 0 <= self.begin <= self.end <= 1:
            yield f"begin and end must satisfy 0 <= begin <= end <= 1, found begin={self.begin}, end={self.end}"
        if self.frequency < 1:
            yield f"frequency must be at least 1 optimizer step, found {self.frequency}"
        if self.scope not in ("uniform", "global"):
            yield f"scope must be 'uniform' or 'global', found {self.scope!r}"
        if self.structure != "unstructured" and self.scope == "global":
            yield (
                f"scope='global' gives layers different widths, which no config can say, so structure="
                f"{self.structure!r} needs scope='uniform'"
            )
        if self.structure != "unstructured" and (self.include or self.exclude):
            yield (
                f"include and exclude choose single weights, so they go with structure='unstructured' only, not with "
                f"{self.structure!r}, which has the same width in all layers"
            )
