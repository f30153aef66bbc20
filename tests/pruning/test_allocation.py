import pytest
import tiny

from hf_compress.errors import ConfigError, TargetError
from hf_compress.pruning.allocation import SCOPES
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner

SHAPES = [(64, 32), (512, 128), (8, 8), (16, 3, 3, 3)]
SIZES = [2048, 65536, 64, 432]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.95, 0.99])
def test_erk_densities_are_in_proportion_to_the_dimensions_and_add_up(sparsity):
    counts = SCOPES.get("erk")(SHAPES, SIZES, [sparsity] * 4)
    assert sum(counts) == round(sparsity * sum(SIZES))
    density = [1 - c / s for c, s in zip(counts, SIZES, strict=True)]
    assert all(0 <= d <= 1 for d in density)
    raw = [sum(shape) / size for shape, size in zip(SHAPES, SIZES, strict=True)]
    scales = [d / r for d, r, c in zip(density, raw, counts, strict=True) if c > 1]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=0.15) if scales else sparsity == 0
    # What stays dense would be more than dense by that scale.
    assert all(r * scales[0] > 0.9 for r, c in zip(raw, counts, strict=True) if c == 0 and scales)


def test_erk_prunes_each_parameter_more_and_more_along_a_rise():
    counts = [SCOPES.get("erk")(SHAPES, SIZES, [s / 100] * 4) for s in range(100)]
    assert all(a <= b + 1 for x, y in zip(counts, counts[1:], strict=False) for a, b in zip(x, y, strict=True))


def attached(**options):
    pruner = Pruner(PruningConfig(criterion="magnitude", begin=0.0, end=1.0, frequency=1, **options))
    pruner.attach(tiny.bert())
    pruner.start(4)
    return pruner


def test_patterns_give_parameters_a_sparsity_of_their_own_along_the_whole_rise():
    pruner = attached(sparsity=0.5, pattern_sparsity={"attention": 0.75, "intermediate": 0.0, "layer": 0.25})
    for step in range(5):
        pruner.step(step)
        share = 1 - (1 - step / 4) ** 3
        for name, sparsity in pruner.sparsities.items():
            final = (
                0.75 if "attention" in name else 0.0 if "intermediate" in name else 0.25 if "layer" in name else 0.5
            )
            assert sparsity == pytest.approx(share * final, abs=2e-3), name
        assert pruner.target(step) == pytest.approx(pruner.sparsity, abs=1e-3)


def test_patterns_that_match_nothing_or_do_not_fit_are_refused():
    with pytest.raises(
        TargetError, match="pattern_sparsity: 'atention' matches no parameter; did you mean 'attention'"
    ):
        attached(pattern_sparsity={"atention": 0.5})
    with pytest.raises(ConfigError, match=r"pattern_sparsity\['x'\] must be at least 0 and below 1, found 1.0"):
        PruningConfig(pattern_sparsity={"x": 1.0})
    with pytest.raises(ConfigError, match="goes with scope='uniform'"):
        PruningConfig(pattern_sparsity={"x": 0.5}, scope="erk")


@pytest.mark.parametrize("scope", list(SCOPES))
def test_every_scope_reaches_the_sparsity_exactly(scope):
    pruner = attached(sparsity=0.75, scope=scope)
    for step in range(5):
        pruner.step(step)
    # 0.75 of each of these matrices is a whole number.
    assert pruner.sparsity == 0.75
