"""`Pruner`: owns the masks of one model, makes them when they are due and keeps them applied.

Level: state. Masks live here and never in the module, so that saved weights are plain weights with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import nn

from hf_compress.errors import CheckpointError, SparsityError
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.schedules import CURVES, SparsityRamp
from hf_compress.pruning.select import keep_largest
from hf_compress.pruning.structures import STRUCTURES, Prunable


class Pruner:
    """Zeroes the least important units of a model along a schedule.

    Call `attach(model)` and `start(total_steps)`, then `step(n)` after the n-th optimizer step.

    Args:
        config: what to prune, how far and when.

    Raises:
        ConfigError: for an unknown structure, criterion or schedule.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.config = config
        self._structure = STRUCTURES.get(config.structure)
        self._criterion = CRITERIA.get(config.criterion)
        self._curve = CURVES.get(config.schedule)
        self.ramp: SparsityRamp | None = None
        self._prunables: list[Prunable] = []
        self._keep: dict[str, torch.Tensor] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._pruned = 0

    def attach(self, model: nn.Module) -> None:
        """Find what there is to prune in `model` and forget all masks.

        Raises:
            TargetError: if a pattern matches nothing or nothing can be pruned.
            ArchitectureError: if the structure does not exist in this architecture.
        """
        self._prunables = self._structure(model, self.config.include, self.config.exclude)
        self._parameters = dict(model.named_parameters())
        self._keep, self._masks, self._pruned = {}, {}, 0

    def start(self, total_steps: int) -> None:
        """Turn the fractions of the config into optimizer steps of a run of `total_steps`."""
        config = self.config
        begin = round(config.begin * total_steps)
        end = max(begin, round(config.end * total_steps))
        self.ramp = SparsityRamp(config.initial_sparsity, config.sparsity, begin, end, config.frequency, self._curve)

    def step(self, step: int) -> None:
        """Make new masks if they are due after `step` optimizer steps, and zero what is masked, in place."""
        if self.ramp is not None and self.ramp.is_due(step):
            self._update(self.ramp(step))
        self.apply_()

    def apply_(self) -> None:
        """Zero the masked entries in place."""
        if self._masks:
            with torch.no_grad():
                torch._foreach_mul_([self._parameters[n].data for n in self._masks], list(self._masks.values()))

    def _update(self, sparsity: float) -> None:
        scores = [self._scores(p) for p in self._prunables]
        if self.config.scope == "global":
            keep = keep_largest(scores, round(sparsity * sum(p.size for p in self._prunables)))
        else:
            keep = [keep_largest([s], round(sparsity * s.numel()))[0] for s in scores]
        self._set_keep({p.name: k for p, k in zip(self._prunables, keep, strict=True)})

    def _scores(self, prunable: Prunable) -> torch.Tensor:
        scores = prunable.scores(self._criterion)
        if prunable.name in self._keep:
            # What is gone stays gone, whatever its score says.
            scores = scores.masked_fill(~self._keep[prunable.name], -torch.inf)
        return scores

    def _set_keep(self, keep: Mapping[str, torch.Tensor]) -> None:
        self._keep = dict(keep)
        self._pruned = sum(int((~k).sum()) for k in self._keep.values())
        self._masks = {}
        for prunable in self._prunables:
            self._masks.update(prunable.masks(self._keep[prunable.name]))

    @property
    def sparsity(self) -> float:
        """Fraction of units that are masked now, 0-1."""
        total = sum(p.size for p in self._prunables)
        return self._pruned / total if total else 0.0

    @property
    def masks(self) -> Mapping[str, torch.Tensor]:
        """Bool mask of each masked parameter by name: True where it stays."""
        return self._masks

    def target(self, step: int) -> float:
        """Return the sparsity the schedule asks for after `step` optimizer steps, 0-1."""
        return self.ramp(step) if self.ramp is not None else 0.0

    def is_final(self, step: int) -> bool:
        """Say whether the final sparsity is reached after `step` optimizer steps."""
        return self.ramp is not None and step >= self.ramp.end

    def check(self, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Make sure that every masked entry is zero.

        Args:
            tensors: weights by parameter name, such as a saved file holds; the attached model's if not given.

        Raises:
            SparsityError: naming the parameter that has other values.
        """
        for name, mask in self._masks.items():
            if tensors is not None and name not in tensors:
                continue
            weight = self._parameters[name].detach() if tensors is None else tensors[name]
            wrong = int(torch.count_nonzero(weight.to(mask.device)[~mask]))
            if wrong:
                raise SparsityError(
                    f"{name}: {int((~mask).sum())} entries must be zero, {wrong} of them are not; something changed "
                    "the weights after the optimizer step"
                )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the kept units as packed bits (8 a byte) by name."""
        return {name: _pack(keep) for name, keep in self._keep.items()}

    def metadata(self) -> dict[str, str]:
        """Return what must be equal for a state to be loaded: the config."""
        return {"pruning": json.dumps(self.config.to_dict(), sort_keys=True)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        """Take over masks that `state_dict` gave, after `attach`.

        Raises:
            CheckpointError: if they were made with another config or for another model.
        """
        if metadata.get("pruning") != self.metadata()["pruning"]:
            raise CheckpointError(
                f"the checkpoint was written with pruning {metadata.get('pruning')}, this run has "
                f"{self.metadata()['pruning']}; resume with the same options or train anew"
            )
        sizes = {p.name: p.size for p in self._prunables}
        if state and {n: -(-s // 8) for n, s in sizes.items()} != {n: t.numel() for n, t in state.items()}:
            raise CheckpointError(
                f"the checkpoint holds masks of {len(state)} targets that do not fit this model's {len(sizes)}; "
                "resume with the model that was being pruned"
            )
        if state:
            device = next(iter(self._parameters.values())).device
            self._set_keep({n: _unpack(state[n], sizes[n]).to(device) for n in sizes})


def _pack(keep: torch.Tensor) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(keep.cpu().numpy()))


def _unpack(bits: torch.Tensor, size: int) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size).astype(bool))
