"""Prunes the weights of a model block by block, each seeing what the pruned ones before it make.

Level: state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_compress.errors import ConfigError
from hf_compress.pruning.oneshot.allocate import allocate, outlier_share
from hf_compress.pruning.oneshot.blocks import Walk
from hf_compress.pruning.oneshot.config import OneShotConfig
from hf_compress.pruning.oneshot.matrices import Looking, Place, Seen
from hf_compress.pruning.oneshot.obs import refined, sparsegpt
from hf_compress.pruning.oneshot.scores import WEIGHT_CRITERIA, group_mask, matrix_mask, row_mask

# Outputs whose error is reported, about.
_ROWS = 64
# Steps after SparseGPT, unless told: each perplexity of scripts/results/oneshot_wikitext.json is lower with them, and
# they cost a twentieth more time.
_REFINE = 20
# name -> parameter of a block, with its values; what they are set to stays.
Parameters = Mapping[str, torch.Tensor]


def criterion_of(config: OneShotConfig) -> str:
    """Return the criterion of weights.

    Raises:
        ConfigError: listing what exists.
    """
    name = config.criterion or "sparsegpt"
    if name != "sparsegpt":
        if name not in WEIGHT_CRITERIA and name in ("fisher", "taylor", "activation", "entropy", "mutual_information"):
            raise ConfigError(f"criterion={name!r} scores whole units; say with keep which of them stay")
        WEIGHT_CRITERIA.get(name)
    return name


def refine_of(config: OneShotConfig) -> int:
    """Return the steps that fit the weights that are left."""
    if config.refine is None:
        return _REFINE if criterion_of(config) == "sparsegpt" else 0
    return config.refine


def prune_matrix(dense: torch.Tensor, seen: Seen, prune: int, config: OneShotConfig) -> torch.Tensor:
    """Return a matrix with zeros.

    Args:
        dense: (outputs, inputs), float32.
        seen: of its inputs; where nothing was seen, the smallest weights go.
        prune: how many entries go.
        config: the criterion and its options.
    """
    name = criterion_of(config)
    norms = seen.norms
    if name == "sparsegpt" and seen.total is not None:
        found = sparsegpt(
            dense, seen.total, prune=prune, n_of_m=config.n_of_m, damping=config.damping, block=config.block_size
        )
    else:
        if norms is None:
            name, norms = "magnitude", dense.new_ones(dense.shape[1])
        scores = WEIGHT_CRITERIA.get(name)(dense, norms)
        compare = config.compare or ("matrix" if name == "magnitude" else "row")
        if config.n_of_m:
            stays = group_mask(scores, *config.n_of_m)
        else:
            stays = matrix_mask(scores, prune) if compare == "matrix" else row_mask(scores, prune)
        found = dense.masked_fill(~stays, 0)
    steps = refine_of(config)
    if steps and seen.total is not None and seen.total.dim() == 2:
        found = refined(found, dense, seen.total, steps=steps, damping=config.damping)
    return found


def check_groups(places: Sequence[Place], config: OneShotConfig) -> None:
    """Make sure that N:M fits every matrix.

    Raises:
        ConfigError: naming the first that it does not fit.
    """
    for place in places if config.n_of_m else ():
        columns = place.rows_columns[1]
        if columns % config.n_of_m[1]:  # type: ignore[index]
            raise ConfigError(
                f"structure={config.structure!r}: expected a number of inputs that {config.n_of_m[1]} divides, "  # type: ignore[index]
                f"found {columns} of {place.name}; exclude it"
            )


class BlockPruner:
    """Prunes block after block.

    Args:
        walk: through the model.
        places: the matrices of each block, by its path.
        config: what goes.
        parameters: returns the parameters of the block of that path, which must be loaded.
        add: sums a tensor over processes that share the calibration data; None: there is one.
    """

    def __init__(
        self,
        walk: Walk,
        places: Mapping[str, Sequence[Place]],
        config: OneShotConfig,
        parameters: Callable[[str], Parameters],
        add: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.walk, self.places, self.config, self.parameters = walk, places, config, parameters
        self._add = add
        self.needs: dict[str, float] = {}
        self._block_of = {place: block for block, each in places.items() for place in each}
        self._counts: dict[Place, int] = {}
        self.report: dict[str, Any] = {}

    @property
    def needs_whole(self) -> bool:
        """Whether X^T X is needed, not only its diagonal."""
        return criterion_of(self.config) == "sparsegpt" or refine_of(self.config) > 0

    def measure(self, position: int) -> None:
        """Scopes owl and sensitivity: find out how much the dense block needs its weights, and hand its output on."""
        block = self.walk.blocks[position]
        outputs: list[torch.Tensor] = []
        keep = self.walk.keep(position)

        def look(number: int, output: Any) -> None:
            keep(number, output)
            outputs.append(_first(output).cpu())

        is_whole = self.needs_whole and self.config.scope == "sensitivity"
        seen = self._look(position, is_whole, look)
        parameters = self.parameters(block)
        if self.config.scope == "owl":
            scores = [
                WEIGHT_CRITERIA.get("wanda")(place.read(parameters[place.name]), norms)
                for place in self.places[block]
                if (norms := seen[place].norms) is not None
            ]
            self.needs[block] = outlier_share(scores)
            return
        dense = {name: p.detach().clone() for name, p in parameters.items()}
        sparsity = float(self.config.final_sparsity or 0.0)
        for place in self.places[block]:
            parameter = parameters[place.name]
            place.write(
                parameter,
                prune_matrix(place.read(parameter), seen[place], round(sparsity * place.size), self.config),
            )
        sums = torch.zeros(2, dtype=torch.float64)

        def compare(number: int, output: Any) -> None:
            change = _first(output).cpu().double() - outputs[number].double()
            sums.add_(torch.stack([change.square().sum(), outputs[number].double().square().sum()]))

        self.walk.run(position, compare)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(dense[name])
        sums = self._over_processes(sums)
        self.needs[block] = float(sums[0] / sums[1].clamp(min=1e-300))

    def prune(self, position: int) -> None:
        """Prune a block, and hand on what it makes then."""
        block = self.walk.blocks[position]
        is_last = position + 1 == len(self.walk.blocks)
        # Processes may use experts in different orders, so that they could not add up what they see on the way.
        is_ordered = self._add is None or all(place.expert is None for place in self.places[block])
        if len(self.walk.batches) == 1 and self._needs_data and is_ordered:
            # All there is to see of a matrix is seen when it is about to be multiplied.
            looking = Looking(self.parameters(block), self.places[block], self.needs_whole)
            looking.mask, looking.on_seen = self.walk.batches[0].get("attention_mask"), self._prune_summed
            with looking:
                self.walk.run(position, None if is_last else self.walk.keep(position))
            for place in self.places[block]:
                if place not in looking.seen:
                    self._prune_summed(place, Seen())
        else:
            for place, seen in self._look(position, self.needs_whole, None).items():
                self._prune_place(place, seen)
            if not is_last:
                self.hand_on(position)
        self._warn_unseen(block)

    @property
    def _needs_data(self) -> bool:
        return criterion_of(self.config) != "magnitude" or refine_of(self.config) > 0

    def _prune_summed(self, place: Place, seen: Seen) -> None:
        # Matrices that are given the same share their sums, which are added up over processes once.
        self._prune_place(place, self._summed({place: seen}, self.needs_whole)[place])

    def _prune_place(self, place: Place, seen: Seen) -> None:
        parameter = self.parameters(self._block_of[place])[place.name]
        dense = place.read(parameter)
        try:
            found = prune_matrix(dense, seen, self.counts[place], self.config)
        except torch.linalg.LinAlgError as error:
            raise ConfigError(
                f"{place.label}: the Hessian of its inputs has no inverse ({error}); raise damping above "
                f"{self.config.damping}, or give more calibration samples"
            ) from error
        place.write(parameter, found)
        self.report[place.label] = _entry(place, dense, found, seen)

    def hand_on(self, position: int) -> None:
        """Run a block that is done, so that the next one gets what it makes."""
        self.walk.run(position, self.walk.keep(position))

    @property
    def counts(self) -> dict[Place, int]:
        """How many weights of each matrix go."""
        if not self._counts:
            self._counts = allocate(self.config, list(self._block_of), self._block_of, self.needs)
        return self._counts

    def _look(self, position: int, is_whole: bool, on_output: Callable[[int, Any], None] | None) -> dict[Place, Seen]:
        block = self.walk.blocks[position]
        places = self.places[block]
        if not self._needs_data and on_output is None:
            return {place: Seen() for place in places}
        looking = Looking(self.parameters(block), places, is_whole)
        masks = [batch.get("attention_mask") for batch in self.walk.batches]
        looking.mask = masks[0]

        def next_mask(number: int, output: Any) -> None:
            looking.mask = masks[min(number + 1, len(masks) - 1)]
            if on_output is not None:
                on_output(number, output)

        with looking:
            self.walk.run(position, next_mask)
        return self._summed({place: looking.seen.get(place, Seen()) for place in places}, is_whole)

    def _summed(self, seen: dict[Place, Seen], is_whole: bool) -> dict[Place, Seen]:
        """Add up what the processes saw; each matrix of shared inputs once."""
        for place, each in seen.items():
            if each.is_summed:
                continue
            each.is_summed = True
            samples = int(self._over_processes(torch.tensor(each.samples)))
            if samples and each.total is None:
                # Only other processes saw it: a stand-in of the same shape as theirs.
                columns = place.rows_columns[1]
                each.total = torch.zeros((columns,) * (2 if is_whole else 1), device=self.walk.device)
            if each.total is not None and samples:
                each.total = self._over_processes(each.total)
            each.samples = samples
        return seen

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        return values if self._add is None else self._add(values)

    def _warn_unseen(self, block: str) -> None:
        unseen = [place.label for place in self.places[block] if not self.report[place.label]["samples"]]
        if unseen and criterion_of(self.config) != "magnitude":
            warnings.warn(
                f"no calibration sample passed through {', '.join(unseen[:5])}"
                f"{f' and {len(unseen) - 5} more' if len(unseen) > 5 else ''}; their smallest weights went",
                stacklevel=2,
            )


def _entry(place: Place, dense: torch.Tensor, found: torch.Tensor, seen: Seen) -> dict[str, Any]:
    entry: dict[str, Any] = {"sparsity": float((found == 0).double().mean()), "samples": seen.samples}
    if seen.total is not None and seen.total.dim() == 2:
        # Of some outputs: of all it would cost as much as the sums themselves.
        every = max(1, len(dense) // _ROWS)
        dense = dense[::every]
        change = dense - found[::every]
        squares = float(((change @ seen.total) * change).sum())
        entry["relative_error"] = squares / max(float(((dense @ seen.total) * dense).sum()), 1e-30)
    return entry


def _first(output: Any) -> torch.Tensor:
    output = output[0] if isinstance(output, (tuple, list)) else output
    return output if isinstance(output, torch.Tensor) else output[0]
