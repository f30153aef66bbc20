"""What a `PruningConfig` means: its names looked up, and the checks that need what they name.

Level: state. Looking names up imports torch, which configs must not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hf_compress.errors import ConfigError, did_you_mean

# Not used here: it fills the registry of structures.
from hf_compress.pruning import channels as channels
from hf_compress.pruning.allocation import SCOPES, Allocation
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.criterion import Criterion
from hf_compress.pruning.schedules import CURVES, Curve, SawTooth, SparsityRamp
from hf_compress.pruning.structures import Structure, find_structure


@dataclass(frozen=True)
class Plan:
    """The parts that a config names."""

    config: PruningConfig
    structure: Structure
    criterion: Criterion
    allocate: Allocation
    curve: Curve

    def ramp(self, total_steps: int) -> SparsityRamp:
        """Turn the fractions of the config into optimizer steps of a run of `total_steps`."""
        config = self.config
        begin = round(config.begin * total_steps)
        end = max(begin, round(config.end * total_steps))
        if self.criterion.at_start:
            begin = end = 0
        elif self.criterion.running:
            # Without any gradient all scores are equal.
            begin, end = max(1, begin), max(1, end)
        initial, final = config.initial_sparsity, config.final_sparsity
        return SparsityRamp(initial, final, begin, end, config.frequency, self.curve, config.rounds or 0)

    def learning_rate(self, total_steps: int, warmup_steps: int) -> SawTooth:
        """Return the rewound learning rate of a run of `total_steps`; the config must have `lr_rewind`."""
        teeth = tuple(self.ramp(total_steps).mask_steps)
        return SawTooth(teeth, warmup_steps, total_steps, self.config.lr_rewind or 0.0)


def make_plan(config: PruningConfig) -> Plan:
    """Look up what `config` names.

    Raises:
        ConfigError: for an unknown name or option, or parts that do not go together.
    """
    structure = find_structure(config.structure)
    criterion = _build(CRITERIA.get(config.final_criterion), config)
    named = f"criterion={config.final_criterion!r}"
    problems = []
    if criterion.decides:
        if config.sparsity is not None or config.initial_sparsity:
            problems.append(f"{named} decides how much goes: leave out sparsity and initial_sparsity")
        if config.scope not in (None, "uniform") or config.pattern_sparsity:
            problems.append(f"{named} decides by itself: leave out scope and pattern_sparsity")
        if structure.fixed_amount and not criterion.at_start:
            problems.append(
                f"structure={config.structure!r} needs the same number in each target, and {named} decides by itself"
            )
    if criterion.at_start and config.regrow:
        problems.append(f"{named} keeps the mask of the start, so regrow must be false")
    if problems:
        raise ConfigError("PruningConfig: " + "; ".join(problems))
    is_over_all = criterion.comparable and config.structure == "unstructured" and not config.pattern_sparsity
    scope = config.scope or ("global" if is_over_all else "uniform")
    return Plan(config, structure, criterion, SCOPES.get(scope), CURVES.get(config.schedule))


def _build(kind: type[Criterion], config: PruningConfig) -> Criterion:
    options = dict(config.criterion_options)
    named = f"criterion {config.final_criterion!r}"
    if config.threshold is not None:
        options.setdefault("threshold", config.threshold)
    known = {f.name: f.default for f in dataclasses.fields(kind)}
    problems = []
    for name, value in options.items():
        if name not in known:
            near = did_you_mean(name, known)
            exist = f"there are: {', '.join(known)}" if known else "it has none"
            problems.append(f"{named} has no option {name!r}{near}; {exist}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.append(f"option {name!r} of {named} must be a number, found {value!r}")
        elif isinstance(known[name], int) and not isinstance(value, int):
            problems.append(f"option {name!r} of {named} must be a whole number, found {value}")
        elif name.startswith(("beta", "decay")) and not 0 <= value < 1:
            problems.append(f"option {name!r} of {named} must lie in 0-1, found {value}")
    if problems:
        raise ConfigError("PruningConfig: " + "; ".join(problems))
    return kind(**options)
