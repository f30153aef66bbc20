"""How important units are, from what passes through them on some batches.

Level: maths. A new criterion is one decorated class here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from hf_compress.registry import Registry

# Values of a unit that its histogram is made of, at most, and its bins.
_VALUES = 4096
_BINS = 32
_LEVELS = 8


@dataclass(frozen=True)
class Seen:
    """What one batch shows of a row of units where the next matrix reads them.

    Args:
        values: activations, (samples, positions, units, entries of a unit).
        gradients: of the summed loss with respect to these, same shape; None if no criterion asks for them.
        valid: bool, (samples, positions); padding is False.
        weight: sum over its outputs of the absolute weights that read each entry, (units, entries).
        labels: class of each sample, (samples,); None if samples have no class.
    """

    values: torch.Tensor
    gradients: torch.Tensor | None
    valid: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor | None

    def mask_gradients(self) -> torch.Tensor:
        """Return the derivative of each sample's loss by a factor on each unit, (samples, units)."""
        if self.gradients is None:
            raise ValueError("the loss was not differentiated")
        return (self.values * self.gradients).sum(dim=(1, 3))

    def sizes(self) -> torch.Tensor:
        """Return the value of units of one entry, the norm of others, (samples, positions, units)."""
        return self.values[..., 0] if self.values.shape[-1] == 1 else self.values.norm(dim=-1)


class UnitCriterion(Protocol):
    """Sums up what is seen of one row of units.

    Attributes:
        needs_gradients: whether the loss must be differentiated.
    """

    needs_gradients: ClassVar[bool]

    def observe(self, seen: Seen) -> None:
        """Take in one batch."""
        ...

    def scores(self) -> torch.Tensor:
        """Return the importance of each unit, float32, (units,)."""
        ...


UNIT_CRITERIA: Registry[Callable[[int], UnitCriterion]] = Registry("criterion of units")


class _Summed:
    needs_gradients: ClassVar[bool] = False

    def __init__(self, units: int) -> None:
        self._total = torch.zeros(units)

    def _add(self, values: torch.Tensor) -> None:
        self._total = self._total.to(values.device) + values.detach().float()

    def scores(self) -> torch.Tensor:
        """Return the sum."""
        return self._total


@UNIT_CRITERIA.register("fisher")
class Fisher(_Summed):
    """Squared derivative of each sample's loss by a mask on the unit, summed over samples.

    Source: Kwon et al. 2022, "A fast post-training pruning framework for transformers", equation 6.
    """

    needs_gradients: ClassVar[bool] = True

    def observe(self, seen: Seen) -> None:
        """Add the squares."""
        self._add(seen.mask_gradients().square().sum(0))


@UNIT_CRITERIA.register("taylor")
class Taylor(_Summed):
    """Absolute derivative of the whole loss by a mask on the unit.

    Source: Michel et al. 2019, "Are sixteen heads really better than one?"; Molchanov et al. 2019.
    """

    needs_gradients: ClassVar[bool] = True

    def observe(self, seen: Seen) -> None:
        """Add the derivatives of the samples' losses."""
        self._add(seen.mask_gradients().sum(0))

    def scores(self) -> torch.Tensor:
        """Return the absolute sum."""
        return self._total.abs()


@UNIT_CRITERIA.register("activation")
class Activation(_Summed):
    """Norm over samples of the mean absolute activation.

    Source: Muralidharan et al. 2024, "Compact language models via pruning and knowledge distillation" (Minitron).
    """

    def observe(self, seen: Seen) -> None:
        """Add the squared means over positions."""
        inside = seen.valid[..., None, None]
        mean = (seen.values.abs() * inside).sum(1) / seen.valid.sum(1).clamp(min=1)[:, None, None]
        self._add(mean.square().sum(dim=(0, 2)))

    def scores(self) -> torch.Tensor:
        """Return the norm."""
        return self._total.sqrt()


@UNIT_CRITERIA.register("wanda")
class Wanda(_Summed):
    """Norm of the activations times the absolute weights that read them.

    Source: Sun et al. 2024, "A simple and effective pruning approach for large language models", equation 1, summed
        over the outputs.
    """

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self._squares = torch.zeros(())
        self._weight = torch.zeros(())

    def observe(self, seen: Seen) -> None:
        """Add the squares of each entry."""
        found = (seen.values * seen.valid[..., None, None]).float().square().sum(dim=(0, 1))
        self._squares, self._weight = self._squares.to(found.device) + found, seen.weight

    def scores(self) -> torch.Tensor:
        """Return the products, summed over the entries of each unit."""
        return (self._squares.sqrt() * self._weight.float()).sum(1)


class _Remembered(_Summed):
    def __init__(self, units: int) -> None:
        super().__init__(units)
        self._values: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []


@UNIT_CRITERIA.register("entropy")
class Entropy(_Remembered):
    """Entropy of the histogram of a unit's values, in nats: a unit that always says the same is of no use.

    Source: Luo and Wu 2017, "An entropy-based pruning method for CNN compression", equation 2.
    """

    def observe(self, seen: Seen) -> None:
        """Remember the values of the first positions."""
        if sum(map(len, self._values)) < _VALUES:
            self._values.append(seen.sizes()[seen.valid][:_VALUES].float().cpu())

    def scores(self) -> torch.Tensor:
        """Return the entropies."""
        values = torch.cat(self._values)
        low, high = values.amin(0), values.amax(0)
        bins = ((values - low) / (high - low).clamp(min=1e-12) * _BINS).long().clamp(max=_BINS - 1)
        share = torch.nn.functional.one_hot(bins, _BINS).float().mean(0)
        return -(share * share.clamp(min=1e-12).log()).sum(1)


@UNIT_CRITERIA.register("mutual_information")
class MutualInformation(_Remembered):
    """Mutual information of a sample's class and a unit's mean value in it, in eight filled levels, in nats."""

    def observe(self, seen: Seen) -> None:
        """Remember the means and the classes."""
        if seen.labels is None:
            raise ValueError("samples have no class")
        total = (seen.sizes() * seen.valid[..., None]).sum(1) / seen.valid.sum(1).clamp(min=1)[:, None]
        self._values.append(total.float().cpu())
        self._labels.append(seen.labels.cpu())

    def scores(self) -> torch.Tensor:
        """Return the information."""
        values, labels = torch.cat(self._values), torch.cat(self._labels)
        ranks = values.argsort(dim=0, stable=True).argsort(dim=0, stable=True)
        levels = torch.nn.functional.one_hot(ranks * _LEVELS // len(values), _LEVELS).double()
        classes = torch.nn.functional.one_hot(labels.unique(return_inverse=True)[1]).double()
        joint = torch.einsum("nul,nc->ulc", levels, classes) / len(values)
        apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        terms = torch.where(joint > 0, joint * (joint / apart.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0)
        return terms.sum(dim=(1, 2)).float()
