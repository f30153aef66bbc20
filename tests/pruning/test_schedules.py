import pytest

from hf_compress.pruning.schedules import CURVES, SawTooth, SparsityRamp


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


def test_exponential_takes_the_same_fraction_of_what_is_left_at_each_mask():
    left = [1 - ramp("exponential")(t) for t in (10, 20, 30, 40, 50)]
    ratios = [b / a for a, b in zip(left, left[1:], strict=False)]
    assert ratios == pytest.approx([(0.2 / 0.9) ** 0.25] * 4)


def test_iterative_rounds_prune_few_times_and_start_at_once():
    rounds = ramp("iterative", initial=0.0, rounds=5)
    assert [s for s in range(100) if rounds.is_due(s)] == rounds.mask_steps == [10, 20, 30, 40, 50]
    for number, step in enumerate(rounds.mask_steps, 1):
        assert 1 - rounds(step) == pytest.approx(0.2 ** (number / 5))
        assert rounds(step + 9) == rounds(step) or step == 50
    assert rounds(9) == 0
    assert rounds(50) == 0.8


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_share_rises_from_zero_to_one_for_thresholds(curve):
    shares = [ramp(curve, initial=0.0).share(s) for s in range(60)]
    assert shares == sorted(shares)
    assert shares[9] == 0
    assert shares[50] == 1


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_parameter_with_a_lower_target_ends_there(curve):
    values = [ramp(curve)(s, final=0.05) for s in range(60)]
    assert values == sorted(values)
    assert values[50] == 0.05


def test_the_learning_rate_falls_between_masks_and_returns_to_its_peak_at_each():
    rate = SawTooth(teeth=(20, 40, 60), warmup=10, total=100, floor=0.1)
    assert [rate(s) for s in (0, 5, 10)] == [0, 0.5, 1]
    assert [rate(s) for s in (20, 40, 60)] == [1, 1, 1]
    assert [rate(s) for s in (15, 19, 30, 39)] == pytest.approx([0.55, 0.19, 0.55, 0.145])
    assert rate(80) == 0.5
    assert rate(100) == 0
    assert all(0 <= rate(s) <= 1 for s in range(120))
