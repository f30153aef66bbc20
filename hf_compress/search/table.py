"""Size and latency of candidates, predicted from a few that were measured.

Level: outside. Both grow with the layers and with the units in them, so a few corners say what is in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_compress.search.candidate import KEEPS, Candidate


def corners(form: str, every: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of a form to measure: whole, few units, few units in few layers, own vocabulary."""
    own = [c for c in every if c.form == form]
    least = min(c.keep for c in own)
    middle = min(KEEPS, key=lambda k: abs(k - 0.5))
    depth = min((c.layers for c in own if c.layers is not None), default=None)
    wanted = [
        Candidate(form),
        Candidate(form, least),
        Candidate(form, middle),
        Candidate(form, 1.0, depth),
        Candidate(form, least, depth),
        Candidate(form, 1.0, None, True),
    ]
    return list(dict.fromkeys(c for c in wanted if c in own))


class Table:
    """Measured candidates, and what they say of the others.

    Args:
        measured: candidate -> "bytes", "parameters" and "latency" (ms).
        layers: of the whole model.
    """

    def __init__(self, measured: Mapping[Candidate, Mapping[str, float]], layers: int) -> None:
        self.measured, self.layers = dict(measured), layers
        self._fits: dict[tuple[str, str], Any] = {}

    def predict(self, candidate: Candidate, what: str) -> float:
        """Return "bytes", "parameters" or "latency" of a candidate of a form that was measured."""
        import numpy as np

        key = candidate.form, what
        if key not in self._fits:
            rows = [(c, m[what]) for c, m in self.measured.items() if c.form == candidate.form]
            features = np.array([self._features(c, what) for c, _ in rows])
            # Relative errors count: a small model must be predicted as well as a large one.
            values = np.array([v for _, v in rows])
            self._fits[key] = np.linalg.lstsq(features / values[:, None], np.ones(len(rows)), rcond=None)[0]
        return float(np.dot(self._features(candidate, what), self._fits[key]))

    def _features(self, candidate: Candidate, what: str) -> list[float]:
        layers = candidate.layers or self.layers
        found = [1.0, layers, layers * candidate.keep]
        # A smaller table of embeddings takes fewer bytes, and no less time.
        return found if what == "latency" else [*found, float(candidate.has_own_vocabulary)]
