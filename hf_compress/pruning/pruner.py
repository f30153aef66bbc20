"""`Pruner`: owns the masks of one model, makes them when they are due and keeps them applied.

Level: state. Masks live here and never in the module, so that saved weights are plain weights with zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.targets import compile_patterns
from hf_compress.errors import ConfigError, SparsityError, UnsupportedError
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.criterion import Moment, Place
from hf_compress.pruning.plan import make_plan
from hf_compress.pruning.schedules import SparsityRamp
from hf_compress.pruning.select import OneRank, Ranks, keep_largest, sink_
from hf_compress.pruning.shards import first_entry, gather, is_sharded, local, ranks_of
from hf_compress.pruning.stores import Shadows, Store, Zeros, check_zeros, multiply_
from hf_compress.pruning.structures import Prunable

logger = logging.getLogger(__name__)


class Pruner:
    """Zeroes the least important units of a model along a schedule.

    Call `attach(model)` and `start(total_steps)`; then, for the n-th optimizer step, `before_step(n)` when its
    gradients are there and `step(n)` after it.

    Args:
        config: what to prune, how far and when.

    Raises:
        ConfigError: for unknown names, and options that do not go together.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.config = config
        self.plan = make_plan(config)
        self.ramp: SparsityRamp | None = None
        self.parameters: dict[str, nn.Parameter] = {}
        self.running: dict[str, dict[str, torch.Tensor]] = {}
        self.pruned: dict[str, int] = {}
        self.store: Store = Zeros({})
        self._prunables: list[Prunable] = []
        self._finals: list[float] = []
        self._ranks: Ranks = OneRank()

    def attach(self, model: nn.Module) -> None:
        """Find what there is to prune in `model` and forget all masks.

        Raises:
            TargetError: if a pattern matches nothing, nothing can be pruned, or a weight does not fit the structure.
            ArchitectureError: if the structure does not exist in this architecture.
            UnsupportedError: if parameters are sharded in a way that the structure or criterion cannot handle.
        """
        config = self.config
        self._prunables = self.plan.structure.prunables(model, config.include, config.exclude)
        self.parameters = {n: p for prunable in self._prunables for n, p in prunable.parameters.items()}
        self._refuse_unfit()
        self._ranks = ranks_of(self.parameters.values())
        self._finals = self._final_sparsities()
        self._refuse_illegal()
        self.running, self.pruned = {}, {}
        self.store = Shadows(self.parameters) if config.regrow else Zeros(self.parameters)

    def start(self, total_steps: int) -> None:
        """Turn the fractions of the config into optimizer steps of a run of `total_steps`."""
        self.ramp = self.plan.ramp(total_steps)

    @property
    def _ramp(self) -> SparsityRamp:
        if self.ramp is None:
            raise SparsityError("the pruner does not know the schedule yet: call start(total_steps) first")
        return self.ramp

    def before_step(self, step: int, *, skip_infinite: bool = False) -> None:
        """Take in the gradients of the optimizer step number `step` (from 1), which is about to be made.

        Args:
            step: from 1.
            skip_infinite: whether a step with infinite gradients, which fp16 training skips, is left out of scores.
        """
        self.store.before_step()
        # After the last mask nothing asks for scores any more.
        if not self.plan.criterion.running or self.ramp is None or step > self.ramp.end:
            return
        there = {n: p for n, p in self.parameters.items() if p.grad is not None}
        if skip_infinite and not self._are_finite(local(p.grad) for p in there.values()):
            return
        moment = Moment(step, self.ramp.share(step), sum(p.numel() for p in self.parameters.values()))
        for name, parameter in there.items():
            weight, gradient = local(parameter.detach()), local(parameter.grad)
            self.plan.criterion.observe_(weight, gradient, self._running(name), moment)

    def _are_finite(self, gradients: Iterable[torch.Tensor]) -> bool:
        infinite = sum(int(not bool(torch.isfinite(g).all())) for g in gradients)
        return int(self._ranks.sum(torch.tensor(infinite))) == 0

    def step(self, step: int, optimizer: Any = None) -> None:
        """Zero what is masked, in place; first make new masks if they are due after `step` optimizer steps.

        Args:
            step: optimizer steps done.
            optimizer: whose moments of newly pruned entries are cleared, unless they may come back.
        """
        if self.ramp is None or not self.ramp.is_due(step):
            self.store.after_step()
            return
        with torch.no_grad():
            if self.plan.criterion.needs_whole and not self.config.regrow:
                # What the optimizer moved of masked entries must not count in a sum over the weight.
                self.store.after_step()
            self._update(step)
        if step >= self.ramp.end:
            self.running = {}
        if optimizer is not None and not self.config.regrow:
            self._clear_moments(optimizer)

    def _update(self, step: int) -> None:
        scores = [self._scores(i, p) for i, p in enumerate(self._prunables)]
        cuts = [self._cut(s, step) for s in scores]
        for score, old in zip(scores, self._kept() or (), strict=False):
            # What is gone stays gone, whatever its score says.
            sink_(score, old)
        if self.plan.criterion.decides:
            kept = [s >= cut for s, cut in zip(scores, cuts, strict=True)]
        else:
            kept = self._select([p.protect(s) for p, s in zip(self._prunables, scores, strict=True)], step)
        masks: dict[str, torch.Tensor] = {}
        for prunable, keep in zip(self._prunables, kept, strict=True):
            for name, mask in prunable.masks(keep).items():
                # An entry may belong to two units, such as a channel of the width and one of a head.
                masks[name] = masks[name] & mask if name in masks else mask
        self.store.assign(masks)
        self._count(kept)

    def _cut(self, scores: torch.Tensor, step: int) -> torch.Tensor | float:
        return self.plan.criterion.cut(scores, self._ramp.share(step)) if self.plan.criterion.decides else 0.0

    def _select(self, scores: list[torch.Tensor], step: int) -> list[torch.Tensor]:
        sparsities = [self._ramp(step, final) for final in self._finals]
        sizes = [p.size for p in self._prunables]
        counts = self.plan.allocate([p.shape for p in self._prunables], sizes, sparsities)
        if counts is None:
            floor = 0.0 if self.plan.structure.fixed_amount else self.config.floor * (1 - sparsities[0])
            return self._select_over_all(scores, round(sparsities[0] * sum(sizes)), floor)
        return [keep_largest([s], k, self._ranks)[0] for s, k in zip(scores, counts, strict=True)]

    def _select_over_all(self, scores: list[torch.Tensor], prune: int, floor: float) -> list[torch.Tensor]:
        """Rank all units together, and again with the best of those parameters on top that fell below `floor`."""
        least = [int(floor * p.size) for p in self._prunables]
        raised: set[int] = set()
        while True:
            kept = keep_largest(scores, prune, self._ranks)
            counts = self._ranks.sum(torch.tensor([int(torch.count_nonzero(k)) for k in kept])).tolist()
            fallen = {i for i, (c, n) in enumerate(zip(counts, least, strict=True)) if c < n} - raised
            if not fallen:
                return kept
            for i in fallen:
                (best,) = keep_largest([scores[i]], self._prunables[i].size - least[i], self._ranks)
                scores[i].masked_fill_(best, torch.inf)
            raised |= fallen

    def _scores(self, index: int, prunable: Prunable) -> torch.Tensor:
        criterion = self.plan.criterion
        entries = {
            name: criterion.scores(local(p.detach()), self._running(name), Place(index, first_entry(p)))
            for name, p in prunable.parameters.items()
        }
        return prunable.scores(entries, criterion.reduction)

    def _running(self, name: str) -> dict[str, torch.Tensor]:
        if name not in self.running and self.plan.criterion.running:
            weight = local(self.parameters[name].detach())
            self.running[name] = {
                kind: torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
                for kind in self.plan.criterion.running
            }
        return self.running.get(name, {})

    def _kept(self) -> list[torch.Tensor] | None:
        """Return the units kept so far, if they bind the next mask."""
        if self.config.regrow or not self.pruned:
            return None
        return [self._kept_units(p) for p in self._prunables]

    def _kept_units(self, prunable: Prunable) -> torch.Tensor:
        return prunable.kept({name: self.store.mask(name) for name in prunable.parameters})

    def recount(self) -> None:
        """Count the pruned units after masks were put into the store."""
        self._count([self._kept_units(p) for p in self._prunables])

    def zero_frozen_(self) -> None:
        """Zero the masked entries of parameters that are not trained."""
        for name, parameter in self.parameters.items() if self.pruned else ():
            if not parameter.requires_grad:
                local(parameter.detach()).mul_(self.store.mask(name))

    def _count(self, kept: Sequence[torch.Tensor]) -> None:
        for prunable, keep in zip(self._prunables, kept, strict=True):
            prunable.applied(keep)
        gone = self._ranks.sum(torch.tensor([int(torch.count_nonzero(~k)) for k in kept])).tolist()
        self.pruned = {p.name: g for p, g in zip(self._prunables, gone, strict=True)}
        for prunable, number in zip(self._prunables, gone, strict=True):
            if number == prunable.size:
                logger.warning("all of %s is pruned; scope='uniform' or pattern_sparsity prevents that", prunable.name)

    def _clear_moments(self, optimizer: Any) -> None:
        # Momentum of a pruned entry would go on moving it, and would leak into what regularises the others.
        for name, parameter in self.parameters.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    multiply_([local(value)], [self.store.mask(name)])

    @property
    def sparsity(self) -> float:
        """Fraction of units that are masked now, 0-1."""
        total = sum(p.size for p in self._prunables)
        return sum(self.pruned.values()) / total if total else 0.0

    @property
    def sparsities(self) -> dict[str, float]:
        """Fraction of units of each parameter (or layer, where units span parameters) that are masked now, 0-1."""
        return {p.name: self.pruned.get(p.name, 0) / p.size for p in self._prunables}

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Bool mask of each masked parameter by name: True where it stays. All processes must ask together."""
        return {n: gather(self.store.mask(n), p) for n, p in self.parameters.items()} if self.pruned else {}

    def target(self, step: int) -> float | None:
        """Return the sparsity that the schedule asks for after `step` steps, 0-1; None if the criterion decides."""
        if self.ramp is None or self.plan.criterion.decides:
            return None
        wanted = [self.ramp(step, final) * p.size for final, p in zip(self._finals, self._prunables, strict=True)]
        return sum(wanted) / max(1, sum(p.size for p in self._prunables))

    def is_final(self, step: int) -> bool:
        """Say whether the final sparsity is reached after `step` optimizer steps."""
        return self.ramp is not None and step >= self.ramp.end

    def check(self) -> None:
        """Make sure that every masked entry of the model is zero.

        Raises:
            SparsityError: naming the parameter that has other values.
        """
        if self.pruned:
            here = {name: local(parameter.detach()) for name, parameter in self.parameters.items()}
            check_zeros({name: self.store.mask(name) for name in here}, here)

    def _final_sparsities(self) -> list[float]:
        names = [p.name for p in self._prunables]
        chosen = dict(self.config.pattern_sparsity)
        patterns = dict(zip(compile_patterns("pattern_sparsity", list(chosen), names), chosen.values(), strict=True))
        default = self.config.final_sparsity
        return [next((s for pattern, s in patterns.items() if pattern.search(name)), default) for name in names]

    def _refuse_illegal(self) -> None:
        for prunable, final in zip(self._prunables, self._finals, strict=True):
            left = prunable.size - round(final * prunable.size)
            if prunable.legal and left not in prunable.legal:
                nearest = min(prunable.legal, key=lambda n: abs(n - left))
                raise ConfigError(
                    f"sparsity {final:g} leaves {left} of {prunable.size} units of {prunable.name}, which the config "
                    f"of the model cannot say; nearest legal: sparsity={1 - nearest / prunable.size:g}"
                )

    def _refuse_unfit(self) -> None:
        unfit = [n for n, p in self.parameters.items() if not p.is_floating_point()]
        if unfit:
            raise ConfigError(
                f"expected float parameters to prune, found {unfit[0]} of {self.parameters[unfit[0]].dtype}; "
                "prune before quantizing, or exclude it"
            )
        frozen = [n for n, p in self.parameters.items() if not p.requires_grad]
        if frozen and (self.plan.criterion.running or self.config.regrow):
            raise ConfigError(
                f"criterion={self.config.final_criterion!r} with regrow={self.config.regrow} needs gradients, and "
                f"{len(frozen)} of {len(self.parameters)} parameters to prune are frozen, e.g. {frozen[0]}; use "
                "criterion='magnitude', or train them"
            )
        sharded = any(is_sharded(p) for p in self.parameters.values())
        if sharded and not all(p.is_local for p in self._prunables):
            raise UnsupportedError(
                f"units of structure={self.config.structure!r} span rows of a weight, and FSDP2 gives each process "
                "some rows; use unstructured, N:M, rows or block:1xW, or train under DistributedDataParallel"
            )
        if sharded and self.plan.criterion.needs_whole:
            raise UnsupportedError(
                f"criterion={self.config.final_criterion!r} ranks the entries of a weight among each other, and FSDP2 "
                "gives each process some of them; use another criterion, or train under DistributedDataParallel"
            )
