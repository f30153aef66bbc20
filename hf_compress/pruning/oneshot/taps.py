"""Looks at units where the next matrix reads them, and takes some away there.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.anatomy import side
from hf_compress.architecture.units import AxisSlice, UnitGroup, entries_of
from hf_compress.errors import ArchitectureError, ConfigError
from hf_compress.pruning.oneshot.importance import Seen

Batch = Mapping[str, torch.Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Tap:
    """Where one matrix reads the units of a group.

    Args:
        model: the model.
        group: the units.
        piece: the side of the matrix that reads them.
    """

    def __init__(self, model: nn.Module, group: UnitGroup, piece: AxisSlice) -> None:
        self.module = model.get_submodule(piece.parameter.rpartition(".")[0])
        self.entries = entries_of(piece, group.count).permute(1, 0, 2).reshape(group.count, -1)
        self._dim = piece.dim
        self.keep: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._gradients: torch.Tensor | None = None

    def register(self) -> Any:
        """Start to look; returns the handle that ends it."""
        return self.module.register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values = args[0]
        if self.keep is not None:  # never of convolutions, whose channels go in one round
            factors = torch.ones(values.shape[-1], dtype=values.dtype, device=values.device)
            factors[self.entries[~self.keep].flatten()] = 0
            values = values * factors
        if values.requires_grad:
            self._values = self._channels_last(values.detach())
            values.register_hook(self._look_back)
        else:
            self._values = self._channels_last(values)
        return (values, *args[1:])

    def _look_back(self, gradients: torch.Tensor) -> None:
        self._gradients = self._channels_last(gradients)

    def _channels_last(self, values: torch.Tensor) -> torch.Tensor:
        return values.movedim(1, -1) if isinstance(self.module, CONVOLUTIONS) else values

    def seen(self, batch: Batch) -> Seen | None:
        """Return what the last pass showed; None if the matrix was not used."""
        values, gradients = self._values, self._gradients
        self._values = self._gradients = None
        if values is None:
            return None
        rows = len(next(iter(batch.values())))
        split = self._split(values, rows)
        by_input = self.module.weight.detach().abs().movedim(self._dim, 0).flatten(1).sum(1)
        weight = by_input[self.entries.to(values.device)]
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != split.shape[:2]:
            mask = torch.ones(split.shape[:2], device=values.device)
        labels = batch.get("labels")
        is_class = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
        back = None if gradients is None else self._split(gradients, rows)
        return Seen(split, back, mask.to(values.device).bool(), weight, labels if is_class else None)

    def _split(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Return (rows, positions, units, entries); what mixes rows counts each of its own as one."""
        rows = rows if len(values) == rows else values.shape[:-1].numel()
        return values.reshape(rows, -1, values.shape[-1])[..., self.entries.to(values.device)]


def _is_read(piece: AxisSlice, model: nn.Module) -> bool:
    """Whether a convolution reads a slice; one in groups is not one matrix."""
    path, _, leaf = piece.parameter.rpartition(".")
    module = model.get_submodule(path)
    return isinstance(module, CONVOLUTIONS) and module.groups == 1 and leaf == "weight" and piece.dim == 1


def taps_of(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[UnitGroup, list[Tap]]:
    """Return where each group is read.

    Raises:
        ArchitectureError: if no linear layer reads one.
    """
    found = {}
    for group in groups:
        readers = [piece for piece in group.slices if side(piece, model) == "in" or _is_read(piece, model)]
        if not readers:
            raise ArchitectureError(
                f"expected a linear layer or a convolution that reads the units of {group.name}, found none; use "
                "criterion='magnitude'"
            )
        found[group] = [Tap(model, group, piece) for piece in readers]
    return found


@contextlib.contextmanager
def looking(taps: Mapping[UnitGroup, Sequence[Tap]]) -> Iterator[None]:
    """Look inside."""
    handles = [tap.register() for each in taps.values() for tap in each]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_device(model: nn.Module, batches: Iterable[Batch]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches where the model is."""
    device = next(model.parameters()).device
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}


def summed_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Return the loss of a batch, summed over its samples; without labels that of labels drawn from the outputs.

    Args:
        model: a transformers model.
        batch: its inputs.
        generator: for the draws.

    Raises:
        ConfigError: if there are neither labels nor logits.

    Source: Kunstner et al. 2019, "Limitations of the empirical Fisher approximation" (labels drawn from the model
        give the true Fisher information).
    """
    rows = len(next(iter(batch.values())))
    output = model(**batch)
    if getattr(output, "loss", None) is not None:
        return output.loss * rows
    logits = [v for k, v in output.items() if k.endswith("logits") and v.is_floating_point()]
    if not logits:
        raise ConfigError(
            f"expected labels in the batches, or logits in the outputs of {type(model).__name__}, found neither; "
            "use criterion='activation'"
        )
    total = torch.zeros((), device=logits[0].device)
    for values in logits:
        flat = values.float().reshape(-1, values.shape[-1])
        if flat.shape[-1] == 1:
            noise = torch.randn(flat.shape, generator=generator).to(flat.device)
            total = total + 0.5 * (flat - flat.detach() - noise).square().sum()
            continue
        drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).to(flat.device)
        # Each sample counts once, however many predictions it has.
        total = total - flat.log_softmax(-1).gather(1, drawn).sum() * rows / len(flat)
    return total
