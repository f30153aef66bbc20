import dataclasses
import math
from itertools import pairwise

import pytest
import records

from hf_compress import compare
from hf_compress.errors import RecordError
from hf_compress.measurement.record import Measurement, save_record
from hf_compress.report.plots import plot_quality_latency, plot_quality_size
from hf_compress.report.tables import compare_table, format_change, format_value

# ruff: noqa: E501
TABLE = """\
                                                  teacher (baseline)    shrunk (intermediate)       quantized (result)
----------------------------------------------------------------------------------------------------------------------
accuracy (360 samples)                                       98.61 %   99.17 % (+0.56 points)   98.89 % (+0.28 points)
parameters                                                 1,594,762          274,186 (x0.17)          274,186 (x0.17)
weights on disk                                              6.39 MB          1.10 MB (x0.17)           208 kB (x0.03)
latency (batch 1, image 8x8, cpu, 2 threads)                 1.60 ms         0.478 ms (x0.30)         0.953 ms (x0.60)
latency (batch 32, image 8x8, cpu, 2 threads)                4.00 ms          1.00 ms (x0.25)          1.30 ms (x0.33)
throughput (batch 1, image 8x8, cpu, 2 threads)        625 samples/s   2092 samples/s (x3.35)   1049 samples/s (x1.68)
throughput (batch 32, image 8x8, cpu, 2 threads)      8000 samples/s  32000 samples/s (x4.00)  24615 samples/s (x3.08)
peak memory (batch 1, image 8x8, cpu, 2 threads)             19.2 MB          3.30 MB (x0.17)           624 kB (x0.03)"""


def test_the_table_of_fixed_records_is_this_one_in_any_order():
    assert [line.rstrip() for line in compare_table(records.three()).splitlines()] == TABLE.splitlines()
    assert compare_table(reversed(records.three())) == compare_table(records.three())


def test_markdown_has_the_same_cells():
    markdown = compare_table(records.three(), style="markdown")
    assert "| accuracy (360 samples) | 98.61 % | 99.17 % (+0.56 points) | 98.89 % (+0.28 points) |" in markdown


@pytest.mark.parametrize(
    ("name", "unit", "value", "base", "change"),
    [
        ("latency", "ms", 2.0, 1.0, "x2.00, slower"),
        ("latency", "ms", 1.02, 1.0, "x1.02"),
        ("throughput", "samples/s", 50, 100, "x0.50, slower"),
        ("accuracy", "fraction", 0.9, 0.95, "-5.00 points"),
        ("bytes_on_disk", "bytes", 25, 100, "x0.25"),
        ("loss", "nats", 1.5, 1.25, "+0.25"),
        ("loss", "nats", 0.0312, 0.0334, "-0.0022"),
        ("loss", "nats", 0.5, 0.5, "+0.00"),
    ],
)
def test_changes_read_as_a_person_would_say_them(name, unit, value, base, change):
    assert format_change(Measurement(name, value, unit), Measurement(name, base, unit)) == change


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("bytes", 999, "999 bytes"),
        ("bytes", 208_000, "208 kB"),
        ("parameters", 1594762, "1,594,762"),
        ("ms", 0.04782, "0.0478 ms"),
    ],
)
def test_values_have_the_unit_a_person_would_choose(unit, value, text):
    assert format_value(Measurement("x", value, unit)) == text


def test_records_that_do_not_belong_together_are_refused():
    teacher, shrunk, quantized = records.three()
    with pytest.raises(RecordError, match="baseline"):
        compare_table([teacher, dataclasses.replace(shrunk, role="baseline")])
    other = dataclasses.replace(quantized, dataset={**quantized.dataset, "samples": 10})
    with pytest.raises(RecordError, match="different data|samples"):
        compare_table([teacher, other])
    with pytest.raises(RecordError):
        compare_table([])
    elsewhere = dataclasses.replace(quantized, environment={**quantized.environment, "processor": "Other CPU"})
    with pytest.raises(RecordError, match="teacher and quantized were not measured in the same place: processor"):
        compare_table([teacher, shrunk, elsewhere])
    counted = dataclasses.replace(elsewhere, measurements=(shrunk.get("parameters"),))
    assert "x0.17" in compare_table([teacher, counted])


def test_numbers_in_different_units_are_not_compared():
    fraction, points = (
        dataclasses.replace(r, measurements=(Measurement("bleu", value, unit),))
        for r, value, unit in zip(records.three()[::2], (0.9, 27.5), ("fraction", ""), strict=True)
    )
    rows = compare_table([fraction, points]).splitlines()[2:]
    assert [row.split()[-2:] for row in rows] == [["%", "-"], ["-", "27.5"]]


@pytest.mark.parametrize("draw", [plot_quality_size, plot_quality_latency])
def test_pictures_show_every_model_once_with_its_name(draw):
    axes = draw(records.three())
    texts = [t.get_text() for t in axes.texts if t.get_text()]
    assert sorted(texts) == ["quantized", "shrunk", "teacher (baseline)"]
    axes.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
    assert not any(a.overlaps(b) for a, b in pairwise(sorted(boxes, key=lambda box: box.x0)))
    assert all(axes.figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
    assert "accuracy" in axes.get_ylabel()
    points = {t.get_text(): axes.transData.transform(t.xy) for t in axes.texts if t.get_text()}
    for text in (t for t in axes.texts if t.get_text()):
        box = text.get_window_extent()
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        nearest = min(points, key=lambda name: math.dist(points[name], middle))
        assert nearest == text.get_text()
    steps = [points[name] for name in ("teacher (baseline)", "shrunk", "quantized")]
    line = [a + t / 100 * (b - a) for a, b in pairwise(steps) for t in range(101)]
    assert not any(box.contains(*place) for box in boxes for place in line)


def test_compare_reads_a_folder_and_writes_page_and_pictures(tmp_path):
    teacher, shrunk, quantized = records.three()
    for record in (teacher, dataclasses.replace(shrunk, notes=("mind this",)), quantized):
        save_record(record, tmp_path / "records" / f"{record.model}.json")
    text = compare(tmp_path / "records", tmp_path / "report")
    assert text == compare_table(records.three()) + "\n- shrunk: mind this"
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "comparison.html",
        "comparison.md",
        "quality_latency.png",
        "quality_size.png",
    }
    assert compare_table(records.three(), style="markdown") in (tmp_path / "report" / "comparison.md").read_text()


def test_without_matplotlib_the_page_is_still_written(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_compress.report.compare.is_available", lambda package: False)
    compare(records.three(), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"comparison.html", "comparison.md"}
    assert "![" not in (tmp_path / "comparison.md").read_text()
