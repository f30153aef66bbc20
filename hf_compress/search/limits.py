"""The limits of a budget in absolute numbers, and what is over them.

Level: outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_compress.search.candidate import Candidate
from hf_compress.search.config import BudgetConfig
from hf_compress.search.table import Table

LIMITS = {"max_bytes": "bytes", "max_latency": "latency", "max_params": "parameters"}


def limits_of(config: BudgetConfig, dense: Mapping[str, float]) -> dict[str, float]:
    """Return the limits that are asked for by name; fractions are of what the whole model has."""
    asked = {name: getattr(config, name) for name in LIMITS}
    return {n: v * dense[LIMITS[n]] if v < 1 else v for n, v in asked.items() if v is not None}


def missed(config: BudgetConfig, found: Mapping[str, float], dense: Mapping[str, float]) -> list[str]:
    """Return the names of limits that a measured model is over; `dense` was measured beside it."""
    return [name for name, limit in limits_of(config, dense).items() if found[LIMITS[name]] > limit]


def excess(table: Table, candidate: Candidate, limits: Mapping[str, float]) -> float:
    """Return the largest predicted value over its limit, above 1 if one is exceeded."""
    return max(table.predict(candidate, LIMITS[name]) / limit for name, limit in limits.items())


def closest(table: Table, every: Sequence[Candidate], limits: Mapping[str, float]) -> str:
    """Return a message that names what comes closest to the limits, and which of them bind."""
    best = min(every, key=lambda c: excess(table, c, limits))
    over = {n: table.predict(best, LIMITS[n]) for n in limits}
    binding = ", ".join(f"{n} {over[n]:,.4g} of {limit:,.4g}" for n, limit in limits.items() if over[n] > limit)
    return (
        f"no candidate is predicted to keep to the budget; closest comes {best}: {binding}. Allow more there, add "
        "a form, or start from a smaller model"
    )
