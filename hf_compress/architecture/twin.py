"""A small model of the same make with random weights, on which guesses about the order of entries are tried.

Level: state. A permutation of units changes no output if and only if the entries that were moved together belong
together. So a guess about an architecture is settled by its own forward pass, in milliseconds, whatever its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from hf_compress.architecture import probing
from hf_compress.architecture.anatomy import Anatomy
from hf_compress.architecture.units import AxisSlice, permuted_index
from hf_compress.architecture.verify import made_up, outputs
from hf_compress.errors import ArchitectureError

_LAYERS = 2
# What is made smaller, if it is large, so that the twin of a large model takes no more memory than a small one.
_REDUCED = ("layers", "vocabulary", "ffn", "width", "other")
_LARGE = 1024
_WIDTHS = (64, 256, 1024)
# Sums of permuted numbers round differently, and some layers compute in float32 whatever they are given.
_TOLERANCE = 2e-5


class Twin:
    """A model built from a config and a seed, in float64 where its forward pass takes that, else in float32.

    Outputs that saturate, such as the tanh of a pooler, magnify what float32 rounds.

    Args:
        model_class: class of the model.
        config: its config; fewer layers than the real one has will do, but at least two where there are two.
    """

    def __init__(self, model_class: type, config: Any) -> None:
        with probing.quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = model_class(config).double().eval()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    # Norms and biases too: what is one or zero everywhere hides a wrong order.
                    parameter.copy_(torch.randn_like(parameter) / parameter.shape[1:].numel() ** 0.5)
        try:
            self.inputs, self._expected = made_up(self.model)
        except ArchitectureError:
            self.model.float()
            self.inputs, self._expected = made_up(self.model)
        self._names = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @contextlib.contextmanager
    def moved(self, moves: Iterable[tuple[AxisSlice, torch.Tensor]]) -> Iterator[None]:
        """Permute units inside: where they lie, and a permutation of them, for each piece."""
        before: dict[str, torch.Tensor] = {}
        try:
            with torch.no_grad():
                for piece, order in moves:
                    value = self._names[piece.parameter]
                    before.setdefault(piece.parameter, value.clone())
                    index = permuted_index(piece, order, value.shape[piece.dim])
                    value.copy_(value.index_select(piece.dim, index))
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    self._names[name].copy_(value)

    def is_unmoved_by(self, moves: Iterable[tuple[AxisSlice, torch.Tensor]]) -> bool:
        """Return whether the outputs stay what they are when units are permuted, as `moved` does."""
        with self.moved(moves):
            found = outputs(self.model, self.inputs)
        return all(is_close(found[name], value) for name, value in self._expected.items())


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two tensors differ by rounding only."""
    if found.shape != expected.shape:
        return False
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return scale == 0.0 or float((found - expected).abs().max()) <= _TOLERANCE * scale


def twin_config(model_class: type, config: Any, anatomy: Anatomy) -> Any:
    """Return `config` with few layers, and a small vocabulary and widths where that still builds.

    Args:
        model_class: class of the model.
        config: left as it is; it must say the size of a head if the width is to shrink.
        anatomy: of the model.
    """
    for axis in sorted(anatomy.axes, key=lambda axis: axis.name != "layers"):
        sizes = (_LAYERS,) if axis.name == "layers" else _WIDTHS if axis.size > _LARGE else ()
        for size in sizes:
            small = probing.with_fields(config, {axis.field: min(size, axis.size)})
            if axis.name in _REDUCED and not isinstance(probing.try_shapes(model_class, small), str):
                config = small
                break
    return config
