import pytest

from hf_compress.pruning.schedules import CURVES, SparsityRamp


def ramp(curve="cubic", **changes):
    values = {"initial": 0.1, "final": 0.8, "begin": 10, "end": 50, "frequency": 10, **changes}
    return SparsityRamp(curve=CURVES.get(curve), **values)


@pytest.mark.parametrize("curve", list(CURVES))
def test_rises_monotonically_from_zero_to_exactly_the_final_sparsity(curve):
    trace = ramp(curve).trace(100)
    assert trace == sorted(trace)
    assert trace[9] == 0
    assert set(trace[50:]) == {0.8}


def test_cubic_follows_zhu_and_gupta_at_each_mask():
    for t in (10, 20, 30, 40, 50):
        expected = 0.8 + (0.1 - 0.8) * (1 - (t - 10) / 40) ** 3
        assert ramp()(t) == pytest.approx(expected)


def test_is_constant_between_masks_and_due_at_the_end_even_off_the_grid():
    odd = ramp(end=47)
    assert odd(29) == odd(20)
    assert [s for s in range(100) if odd.is_due(s)] == [10, 20, 30, 40, 47]


@pytest.mark.parametrize("begin", [0, 5])
def test_one_shot_when_begin_is_end(begin):
    once = ramp(begin=begin, end=begin)
    assert [s for s in range(20) if once.is_due(s)] == [begin]
    assert once(begin) == 0.8
