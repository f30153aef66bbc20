"""How a sparsity is shared out among the parameters.

Level: maths. A scope maps shape, number of units and sparsity asked for (0-1) of each parameter to the number of units
that go; None says that one ranking over all of them decides. A new scope is one decorated function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hf_compress.registry import Registry

Shape = Sequence[int]
Allocation = Callable[[Sequence[Shape], Sequence[int], Sequence[float]], "list[int] | None"]
SCOPES: Registry[Allocation] = Registry("scope")


@SCOPES.register("uniform")
def uniform(shapes: Sequence[Shape], sizes: Sequence[int], sparsities: Sequence[float]) -> list[int] | None:
    """Prune of each parameter the fraction that is asked for it."""
    return [round(size * sparsity) for size, sparsity in zip(sizes, sparsities, strict=True)]


@SCOPES.register("global")
def one_ranking(shapes: Sequence[Shape], sizes: Sequence[int], sparsities: Sequence[float]) -> list[int] | None:
    """Let one ranking over all parameters decide."""
    return None


@SCOPES.register("erk")
def erdos_renyi_kernel(shapes: Sequence[Shape], sizes: Sequence[int], sparsities: Sequence[float]) -> list[int] | None:
    """Give each parameter a density in proportion to the sum of its dimensions over their product.

    Parameters that would be more than dense stay dense, and the others share the rest. The sum of the counts is the
    rounded sum of size x sparsity.

    Source: Evci et al. 2020, "Rigging the lottery", section 3 (Erdos-Renyi-Kernel).
    """
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    pruned = sum(size * sparsity for size, sparsity in zip(sizes, sparsities, strict=True))
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in dense]
        left = sum(sizes) - pruned - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in free) if free else 0.0
        full = {i for i in free if scale * raw[i] >= 1}
        if not full:
            break
        dense |= full
    exact = [0.0 if i in dense else sizes[i] * (1 - scale * raw[i]) for i in range(len(sizes))]
    return _round_to(exact, round(pruned))


def _round_to(exact: Sequence[float], total: int) -> list[int]:
    """Round each number down, but those with the largest remainders up, so that they add up to `total`."""
    counts = [int(e) for e in exact]
    # Of equal remainders the first ones.
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
