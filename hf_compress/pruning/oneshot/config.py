"""Options of pruning without training.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_compress.options import Options
from hf_compress.pruning.config import n_of_m, n_of_m_problems

UNIT_KINDS = ("layers", "hidden", "filters", "ffn", "heads")
SCOPES = ("uniform", "erk", "owl", "sensitivity")


@dataclass(frozen=True)
class OneShotConfig(Options):
    """What goes without training: single weights (`sparsity`, or `structure` N:M), or whole units (`keep`)."""

    sparsity: float | None = field(
        default=None, metadata={"help": "fraction of the weights that become zero, 0-1 (1 excluded)"}
    )
    structure: str = field(
        default="unstructured", metadata={"help": "unstructured, or N:M (2:4 ...): N of M neighbours of a row stay"}
    )
    criterion: str | None = field(
        default=None,
        metadata={
            "help": "of weights: sparsegpt (default), wanda, ria, magnitude; of units: fisher (default), taylor, "
            "activation, wanda, entropy, mutual_information, magnitude, random"
        },
    )
    scope: str = field(
        default="uniform",
        metadata={
            "help": "uniform: the same sparsity everywhere; erk: more where a matrix is large; owl: less in blocks "
            "with many outliers; sensitivity: less in blocks whose output suffers"
        },
    )
    spread: float = field(
        default=0.08, metadata={"help": "owl, sensitivity: how far a block's sparsity may be from `sparsity`, 0-1"}
    )
    pattern_sparsity: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "regular expression of parameter names: sparsity of these, 0-1; the first match counts"},
    )
    compare: str | None = field(
        default=None,
        metadata={
            "help": "magnitude, wanda, ria: weights compete in each row (row) or in the whole matrix (matrix); "
            "default: row, and matrix for magnitude"
        },
    )
    damping: float = field(
        default=0.01, metadata={"help": "sparsegpt: part of the mean diagonal added to the Hessian, above 0"}
    )
    block_size: int = field(
        default=128,
        metadata={"help": "sparsegpt: columns of which the weights that go are chosen at once, at least 1"},
    )
    refine: int | None = field(
        default=None,
        metadata={
            "help": "steps of conjugate gradients that fit the weights that are left, at least 0, any criterion; "
            "default: 20 for sparsegpt, which has what they need, else 0"
        },
    )
    include: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names; empty: linear weights of the body"}
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "regular expressions of parameter names that are left alone"}
    )
    activations: str = field(
        default="memory", metadata={"help": "where what passes between blocks is kept: memory or disk"}
    )
    joint_gb: float = field(
        default=0.15,
        metadata={
            "help": "GB of activations, at least 0, up to which all batches pass through a block as one: one pass "
            "instead of two, in which each matrix sees what the pruned ones before it in the block make"
        },
    )
    keep: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "units: how many of ffn, heads, hidden, filters, layers stay, or the fraction below 1"},
    )
    layer_criterion: str = field(default="loss", metadata={"help": "of layers: loss, influence, angular"})
    rounds: int = field(default=1, metadata={"help": "units: steps in which they go, each measured anew, at least 1"})
    repair: float | None = field(
        default=0.01, metadata={"help": "units: ridge of the fit of what read them, above 0; none: no fit"}
    )
    layout: str = field(
        default="uniform", metadata={"help": "units: uniform, as many in each layer, or per_layer (save_per_layer)"}
    )

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """How many of how many stay, if the structure is N:M."""
        return n_of_m(self.structure)

    @property
    def final_sparsity(self) -> float:
        """`sparsity`, or that of N:M."""
        return self.sparsity if self.n_of_m is None else 1 - self.n_of_m[0] / self.n_of_m[1]  # type: ignore[return-value]

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if self.keep:
            yield from self._unit_problems()
            return
        yield from self._structure_problems()
        for name, value in {"sparsity": self.sparsity, **dict(self.pattern_sparsity)}.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and (not is_number or not 0 <= value < 1):
                yield f"{name}: a sparsity must be at least 0 and below 1, found {value!r}"
        if self.scope not in SCOPES:
            yield f"scope must be one of {', '.join(SCOPES)}, found {self.scope!r}"
        if self.pattern_sparsity and self.scope != "uniform":
            yield f"pattern_sparsity goes with scope='uniform', found {self.scope!r}"
        if not 0 <= self.spread < 1:
            yield f"spread must be at least 0 and below 1, found {self.spread}"
        if self.compare not in (None, "row", "matrix"):
            yield f"compare must be row or matrix, found {self.compare!r}"
        if not self.damping > 0:
            yield f"damping must be above 0, found {self.damping}"
        if self.block_size < 1:
            yield f"block_size must be at least 1, found {self.block_size}"
        if self.refine is not None and self.refine < 0:
            yield f"refine must be at least 0, found {self.refine}"
        if not self.joint_gb >= 0:
            yield f"joint_gb must be at least 0, found {self.joint_gb}"
        if self.activations not in ("memory", "disk"):
            yield f"activations must be memory or disk, found {self.activations!r}"

    def _structure_problems(self) -> Iterator[str]:
        group = self.n_of_m
        if group is None:
            if self.structure != "unstructured":
                yield (
                    f"structure must be unstructured or N:M such as 2:4, found {self.structure!r}; whole units are "
                    "named by keep"
                )
            if self.sparsity is None:
                yield "give sparsity, structure='N:M', or keep"
            return
        yield from n_of_m_problems(group, self.sparsity)
        if self.scope != "uniform" or self.pattern_sparsity or self.compare:
            yield (
                f"structure={self.structure!r} has the same sparsity in each group, so scope, pattern_sparsity and "
                "compare do not go with it"
            )

    def _unit_problems(self) -> Iterator[str]:
        unknown = sorted(set(self.keep) - set(UNIT_KINDS))
        if unknown:
            yield f"keep: expected some of {', '.join(UNIT_KINDS)}, found {unknown}"
        if self.sparsity is not None or self.structure != "unstructured" or self.pattern_sparsity:
            yield "keep names units; sparsity, structure and pattern_sparsity are of single weights: give one of both"
        if self.rounds < 1:
            yield f"rounds must be a whole number of at least 1, found {self.rounds!r}"
        if self.layout not in ("uniform", "per_layer"):
            yield f"layout must be 'uniform' or 'per_layer', found {self.layout!r}"
        if self.repair is not None and not self.repair > 0:
            yield f"repair must be above 0, or none for no repair, found {self.repair!r}"
