"""How many weights of each matrix go: the same share, by shape, by outliers, by what suffers, or by name.

Level: state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from hf_compress.architecture.targets import compile_patterns
from hf_compress.pruning.allocation import SCOPES
from hf_compress.pruning.oneshot.config import OneShotConfig
from hf_compress.pruning.oneshot.matrices import Place

# Multiple of the mean score above which a weight counts as an outlier.
OUTLIER = 5.0


def allocate(
    config: OneShotConfig, places: Sequence[Place], blocks: Mapping[Place, str], needs: Mapping[str, float]
) -> dict[Place, int]:
    """Return how many weights of each matrix become zero.

    Args:
        config: sparsity and scope.
        places: the matrices.
        blocks: the block of each.
        needs: scopes owl and sensitivity: how much each block needs its weights; otherwise empty.

    Raises:
        TargetError: if a pattern is malformed or matches no matrix.
    """
    sparsity = float(config.final_sparsity or 0.0)
    if config.scope == "erk":
        shapes = [place.rows_columns for place in places]
        counts = SCOPES.get("erk")(shapes, [p.size for p in places], [sparsity] * len(places))
        return dict(zip(places, counts or (), strict=True))
    each = dict.fromkeys(places, sparsity)
    if needs:
        sizes = {block: sum(p.size for p in places if blocks[p] == block) for block in needs}
        by_block = spread_sparsity(needs, sizes, sparsity, config.spread)
        each = {place: by_block[blocks[place]] for place in places}
    patterns = compile_patterns("pattern_sparsity", list(config.pattern_sparsity), [p.name for p in places])
    for place in places:
        found = (v for p, v in zip(patterns, config.pattern_sparsity.values(), strict=True) if p.search(place.name))
        each[place] = next(found, each[place])
    return _rounded(each)


def _rounded(each: Mapping[Place, float]) -> dict[Place, int]:
    """Return whole numbers whose sums, matrix after matrix, are nearest to the exact ones."""
    counts, exact, done = {}, 0.0, 0
    for place, sparsity in each.items():
        exact += sparsity * place.size
        counts[place] = min(place.size, max(0, round(exact) - done))
        done += counts[place]
    return counts


def spread_sparsity(
    needs: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float
) -> dict[str, float]:
    """Return a sparsity for each block, less where it needs its weights, on average as asked.

    Args:
        needs: how much each block needs its weights, any unit.
        sizes: number of weights of each.
        sparsity: of all together, 0-1.
        spread: half the distance between the most and the least, 0-1.

    Source: Yin et al. 2024, "Outlier weighed layerwise sparsity (OWL)", section 3.2; here the mean is over weights.
    """
    low, high = min(needs.values()), max(needs.values())
    scaled = {b: (n - low) / (high - low) * 2 * spread if high > low else 0.0 for b, n in needs.items()}
    mean = sum(scaled[b] * sizes[b] for b in needs) / sum(sizes.values())
    found = {b: sparsity - scaled[b] + mean for b in needs}
    # What would be below 0 or above almost all is held there.
    return {b: min(max(s, 0.0), math.nextafter(1.0, 0.0)) for b, s in found.items()}


def outlier_share(scores: Sequence[torch.Tensor]) -> float:
    """Return the share of scores above a multiple of their mean, 0-1.

    Source: Yin et al. 2024, equation 1, with M = 5.
    """
    total = sum(float(s.sum(dtype=torch.float64)) for s in scores)
    size = sum(s.numel() for s in scores)
    limit = OUTLIER * total / max(1, size)
    return sum(int((s > limit).sum()) for s in scores) / max(1, size)
