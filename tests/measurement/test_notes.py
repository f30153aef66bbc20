import dataclasses
import statistics

import pytest
import records

from hf_compress.measurement.notes import honest_notes, unquantized_source
from hf_compress.measurement.record import Measurement


def test_a_quantized_model_that_is_slower_than_what_it_was_quantized_from_says_by_how_much():
    teacher, shrunk, quantized = records.three()
    source = unquantized_source(quantized, [teacher, shrunk])
    assert source is shrunk
    notes = honest_notes(quantized, teacher, source)
    assert notes[0].startswith(
        "slower than shrunk, which it was quantized from, at batch 1, image 8x8, cpu, 2 threads"
    )
    assert "(0.953 ms against 0.478 ms, x1.99)" in notes[0]
    assert "computes in float32" in notes[0]
    assert len(notes) == 2


def test_faster_models_and_models_without_a_measured_source_get_no_such_note():
    teacher, shrunk, quantized = records.three()
    assert unquantized_source(shrunk, [teacher]) is None
    assert unquantized_source(quantized, [teacher]) is None
    assert honest_notes(quantized, teacher) == ()
    assert honest_notes(teacher, teacher) == ()


def test_slower_than_the_baseline_is_said_against_the_baseline():
    teacher, shrunk, quantized = records.three()
    slow = dataclasses.replace(teacher, model="slow", measurements=tuple(records.speed(1, 3.2)))
    (note,) = honest_notes(slow, teacher)
    assert note == "slower than the baseline at batch 1, image 8x8, cpu, 2 threads (3.20 ms against 1.60 ms, x2.00)"


@pytest.mark.parametrize(("milliseconds", "macs", "is_said"), [(1.2, 5e8, True), (0.6, 5e8, False), (1.6, 1e9, False)])
def test_a_model_whose_time_lags_far_behind_its_arithmetic_says_so(milliseconds, macs, is_said):
    teacher, _, _ = records.three()
    where = {"batch_size": 1, "image": "8x8", "device": "cpu", "threads": 2}
    base = dataclasses.replace(
        teacher, measurements=(*records.speed(1, 1.6), Measurement("macs", 10**9, "MACs", where))
    )
    other = (*records.speed(1, milliseconds), Measurement("macs", macs, "MACs", where))
    notes = honest_notes(dataclasses.replace(teacher, model="other", measurements=other), base)
    assert [n for n in notes if "2.00 times fewer multiply-accumulates" in n] == list(notes)
    assert bool(notes) == is_said


STEADY = [10.0, 10.2, 9.9, 10.1] * 5


@pytest.mark.parametrize(
    ("samples", "conditions", "said"),
    [
        (STEADY, {"blocks": 5, "other_load": 0.02}, None),
        ([10.0, 10.0, 14.0, 7.0] * 5, {"blocks": 5}, "vary by 40 %"),
        ([*STEADY[:16], *[12.0] * 4], {"blocks": 5}, "drift by 19 % (medians of 5 blocks of samples)"),
        ([*STEADY[:16], *[12.0] * 4], {}, None),
        (STEADY, {"blocks": 5, "other_load": 0.84}, "other programs kept 0.8 cores busy"),
    ],
    ids=["quiet", "spread", "drift", "without blocks", "load"],
)
def test_times_of_a_machine_that_does_something_else_or_changes_its_speed_say_so(samples, conditions, said):
    latency = Measurement("latency", statistics.median(samples), "ms", {"batch_size": 1, **conditions}, samples)
    notes = honest_notes(dataclasses.replace(records.three()[0], measurements=(latency,)), None)
    assert len(notes) == (said is not None)
    assert not said or (said in notes[0] and "the machine was noisy" in notes[0])
