"""Options of gradual pruning.

Level: base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.options import Options

# Structures whose units `shrink` removes.
REMOVABLE = ("ffn", "heads", "hidden", "filters", "layers")


def n_of_m(structure: Any) -> tuple[int, int] | None:
    """Return how many of how many stay, if a structure is N:M."""
    found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", structure) if isinstance(structure, str) else None
    return (int(found[1]), int(found[2])) if found else None


def n_of_m_problems(group: tuple[int, int], sparsity: float | None) -> Iterator[str]:
    """Yield what is wrong with N:M, alone or with the sparsity that is given beside it."""
    keep, of = group
    if not 1 <= keep < of:
        yield f"structure N:M keeps N of M, so 1 <= N < M, found '{keep}:{of}'"
    elif sparsity is not None and abs(sparsity - (1 - keep / of)) > 1e-9:
        yield f"structure='{keep}:{of}' has sparsity {1 - keep / of:g}, found {sparsity}"


@dataclass(frozen=True)
class PruningConfig(Options):
    """What to prune, how far and when; the help text of each field has its unit and range.

    The sparsity is 0 up to `begin` (warm-up), rises from `initial_sparsity` to `sparsity` at `end`, and then stays
    (cool-down).
    """

    sparsity: float | None = field(
        default=None,
        metadata={
            "help": "final fraction of units (weights, blocks, rows, neurons) that is zero, 0-1 (1 excluded); "
            "default: 0.5, for N:M 1 - N/M; none where a threshold decides"
        },
    )
    structure: str = field(
        default="unstructured",
        metadata={
            "help": "what is zeroed together: unstructured, N:M such as 2:4, block:HxW, rows, columns; or what "
            "is removed in the end: ffn, heads, hidden, filters, layers"
        },
    )
    criterion: str | None = field(
        default=None,
        metadata={
            "help": "score by which the least important are found: magnitude, lamp, random, taylor, movement, platon; "
            "or what decides by itself: threshold, relative_threshold, soft_movement, keep; default: platon, and "
            "taylor for what is removed in the end"
        },
    )
    criterion_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the criterion by name, such as beta1 of platon"}
    )
    threshold: float | None = field(
        default=None, metadata={"help": "final threshold of criteria that have one, above 0; default: the criterion's"}
    )
    scope: str | None = field(
        default=None,
        metadata={
            "help": "uniform: the same sparsity in each target; global: one ranking over all targets; erk: more "
            "where a target is large; default: global for single weights by platon or lamp, else uniform"
        },
    )
    floor: float = field(
        default=0.2,
        metadata={
            "help": "least density of each target with scope global, as a fraction of the density of all, 0-1: no "
            "target is emptied"
        },
    )
    pattern_sparsity: Mapping[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "regular expression of parameter names: final sparsity of these, 0-1; the first that matches "
            "counts, the other targets get `sparsity`"
        },
    )
    schedule: str = field(
        default="cubic", metadata={"help": "how sparsity rises: cubic, linear, exponential, iterative, constant"}
    )
    rounds: int | None = field(default=None, metadata={"help": "number of masks of schedule iterative, at least 2"})
    initial_sparsity: float = field(default=0.0, metadata={"help": "sparsity at the first mask, 0 to sparsity"})
    begin: float = field(default=0.05, metadata={"help": "start of the rise, fraction of all optimizer steps, 0-1"})
    end: float = field(default=0.65, metadata={"help": "end of the rise, fraction of all optimizer steps, 0-1"})
    frequency: int = field(default=20, metadata={"help": "optimizer steps between two masks, at least 1"})
    lr_rewind: float | None = field(
        default=None,
        metadata={
            "help": "rewind the learning rate to its peak at each mask and let it fall to this fraction of the peak, "
            "0-1, until the next; none: the scheduler of TrainingArguments"
        },
    )
    regrow: bool = field(
        default=False,
        metadata={"help": "train pruned entries on in the background (straight-through), so that they may come back"},
    )
    include: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names to prune; empty: all linear weights"}
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names that are left alone"}
    )

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """How many of how many stay, if the structure is N:M."""
        return n_of_m(self.structure)

    @property
    def final_sparsity(self) -> float:
        """`sparsity`, or what it is by default."""
        if self.sparsity is not None:
            return self.sparsity
        return 1 - self.n_of_m[0] / max(1, self.n_of_m[1]) if self.n_of_m else 0.5

    @property
    def final_criterion(self) -> str:
        """`criterion`, or what it is by default."""
        return self.criterion or ("taylor" if self.structure in REMOVABLE else "platon")

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        yield from self._amount_problems()
        if not 0 <= self.begin <= self.end <= 1:
            yield f"begin and end must satisfy 0 <= begin <= end <= 1, found begin={self.begin}, end={self.end}"
        if self.frequency < 1:
            yield f"frequency must be at least 1 optimizer step, found {self.frequency}"
        if (self.schedule == "iterative") != (self.rounds is not None):
            yield f"rounds and schedule='iterative' go together, found rounds={self.rounds}, {self.schedule!r}"
        elif self.rounds is not None and self.rounds < 2:
            yield f"rounds must be at least 2 (one round is schedule='constant'), found {self.rounds}"
        if not 0 <= self.floor <= 1:
            yield f"floor must lie between 0 and 1, found {self.floor}"
        if self.lr_rewind is not None and not 0 <= self.lr_rewind <= 1:
            yield f"lr_rewind must lie between 0 and 1, found {self.lr_rewind}"
        yield from self._structure_problems()

    def _amount_problems(self) -> Iterator[str]:
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            yield f"sparsity must be at least 0 and below 1, found {self.sparsity}"
        highest = self.final_sparsity
        if not 0 <= self.initial_sparsity <= max(highest, 0):
            yield f"initial_sparsity must lie between 0 and sparsity ({highest}), found {self.initial_sparsity}"
        if self.threshold is not None and not self.threshold > 0:
            yield f"threshold must be above 0, found {self.threshold}"
        for pattern, value in self.pattern_sparsity.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < 1:
                yield f"pattern_sparsity[{pattern!r}] must be at least 0 and below 1, found {value!r}"
        if self.pattern_sparsity and self.scope not in (None, "uniform"):
            yield f"pattern_sparsity goes with scope='uniform', found {self.scope!r}"

    def _structure_problems(self) -> Iterator[str]:
        group = self.n_of_m
        if group:
            yield from n_of_m_problems(group, self.sparsity)
            if self.scope == "erk" or self.pattern_sparsity:
                yield f"structure={self.structure!r} has the same sparsity in each target: use scope='uniform'"
        if self.structure in REMOVABLE:
            if self.scope not in (None, "uniform"):
                yield (
                    f"scope={self.scope!r} gives layers different widths, which no config can say, so structure="
                    f"{self.structure!r} needs scope='uniform'"
                )
            if self.include or self.exclude or self.pattern_sparsity:
                yield (
                    "include, exclude and pattern_sparsity choose single weights, so they do not go with structure="
                    f"{self.structure!r}, which has the same width in all layers"
                )
