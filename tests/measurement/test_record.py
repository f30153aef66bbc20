import dataclasses
import json
from pathlib import Path

import numpy
import pytest
import records

from hf_compress.errors import RecordError
from hf_compress.measurement.record import Measurement, Record, load_record, load_records, save_record


def test_round_trip_through_a_file_that_is_written_whole(tmp_path):
    record = records.three()[0]
    assert load_record(save_record(record, tmp_path / "new" / "teacher.json")) == record
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["teacher.json"]


def test_records_of_a_folder_come_baseline_first_and_result_last(tmp_path):
    for record in reversed(records.three()):
        save_record(record, tmp_path / f"{record.model}.json")
    assert [r.model for r in load_records(tmp_path)] == ["teacher", "shrunk", "quantized"]
    with pytest.raises(RecordError, match="holds no records"):
        load_records(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(RecordError, match="finite plain number"):
        Measurement("accuracy", value, "fraction")


def test_get_finds_by_condition_and_says_what_there_is():
    record = records.three()[0]
    assert record.get("latency", batch_size=32).value == 4.0
    with pytest.raises(RecordError, match=r"expected one measurement 'latency' .* found 2; it has accuracy, bytes"):
        record.get("latency")
    with pytest.raises(RecordError, match="found 0"):
        record.get("f1")


@pytest.mark.parametrize(
    "damage", [{"schema_version": 2}, {"extra": 1}, {"measurements": [{"name": "x"}]}, {"role": "winner"}]
)
def test_a_file_that_is_no_record_is_refused(tmp_path, damage):
    data = {**records.three()[0].to_dict(), **damage}
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"bad\.json.*(record|role)"):
        load_record(tmp_path / "bad.json")


def test_spread_is_the_distance_between_the_quartiles():
    assert Measurement("latency", 3, "ms", samples=tuple(range(1, 9))).spread == 4
    assert Measurement("latency", 3, "ms", samples=(1, 2)).spread is None
    assert Record("m", "result", (), {}).notes == ()


@pytest.mark.parametrize("samples", [(1.0, float("inf")), (1.0, float("nan")), ("fast",), (None,)])
def test_samples_that_are_no_finite_numbers_are_refused(samples):
    with pytest.raises(RecordError, match="samples of 'latency'"):
        Measurement("latency", 1.0, "ms", samples=samples)


def test_a_numpy_float_becomes_a_plain_one():
    assert type(Measurement("accuracy", numpy.float64(0.5), "fraction").value) is float
    assert type(Measurement("parameters", 5, "parameters").value) is int


@pytest.mark.parametrize("what", [Path("x"), float("nan"), {1, 2}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, what):
    record = records.three()[0]
    path = save_record(record, tmp_path / "r.json")
    with pytest.raises(RecordError, match="'teacher' must hold plain"):
        save_record(dataclasses.replace(record, method={"x": what}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert load_record(path) == record


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(share):
    values = tuple(numpy.random.default_rng(0).permutation(37).astype(float))
    found = Measurement("latency", 1.0, "ms", samples=values).percentile(share)
    assert found == numpy.percentile(values, 100 * share, method="inverted_cdf")
    assert Measurement("latency", 1.0, "ms").percentile(share) is None
