"""What models are made of: counted from the files, and drawn."""

import html
import json
import re

import pytest
import tiny
import torch
from safetensors.torch import load_file

from hf_compress import QuantizationConfig, compare, measure, quantize, shrink
from hf_compress.errors import RecordError
from hf_compress.measurement.parts import describe_parts
from hf_compress.report.parts_plots import plot_kept, plot_parts

WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def records(folder):
    model = tiny.bert(**WIDE)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[:32] = 0
    model.save_pretrained(folder / "dense")
    shrink(model, ffn=64).save_pretrained(folder / "small")
    quantize(folder / "small", folder / "nf4", QuantizationConfig("nf4"))
    folders = {name: folder / name for name in ("dense", "small", "nf4")}
    return measure(folders, batch_sizes=(1,), rounds=1, seconds=0.0, evaluate=lambda model: {"accuracy": 0.5})


def test_bytes_shapes_and_zeros_are_those_of_the_files(records, folder):
    for record in records:
        stored = load_file(folder / record.model / "model.safetensors")
        parts = record.method["parts"]
        embeddings = sum(t.nbytes for n, t in stored.items() if "embeddings" in n)
        assert parts["part_bytes"]["embeddings"] == embeddings
        assert sum(parts["part_bytes"].values()) == sum(t.nbytes for t in stored.values())
        assert sum(parts["files"].values()) == record.get("bytes_on_disk").value
    layers = records[0].method["parts"]["layers"]
    assert layers["bert.encoder.layer.0.intermediate.dense.weight"] == {"shape": [128, 64], "nonzeros": 96 * 64}
    assert "layers" not in records[2].method["parts"]
    assert json.loads(json.dumps(describe_parts(folder / "dense"))) == records[0].method["parts"]


def test_loading_takes_a_time_that_is_measured_in_a_fresh_process(records):
    assert all(0 < record.get("load_time").value < 60 for record in records)


def test_the_picture_of_parts_has_the_bytes(records):
    axes = plot_parts(records)
    widths = [sum(p.get_width() for p in axes.patches if round(p.get_y() + 0.31) == row) for row in range(3)]
    wanted = [sum(record.method["parts"]["part_bytes"].values()) / 1e3 for record in records]
    assert widths == pytest.approx(wanted, rel=1e-6)


def test_the_picture_of_what_is_left_has_the_fractions(records):
    axes = plot_kept(records[1], records[0])
    kinds = [label.get_text() for label in axes.get_yticklabels()]
    row = kinds.index("intermediate.dense")
    cells = {t.get_position(): t.get_text() for t in axes.texts}
    assert cells[1, row] == "50"
    with pytest.raises(RecordError, match="no weight of the same name"):
        plot_kept(records[2], records[0])


def test_the_page_holds_table_notes_and_pictures_and_nothing_from_elsewhere(records, tmp_path):
    compare(records, tmp_path / "report")
    page = (tmp_path / "report" / "comparison.html").read_text()
    for cell in ("dense (baseline)", "accuracy", "peak memory", "time to load"):
        assert html.escape(cell) in page
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,', page)
    assert pictures == ["quality size", "quality latency", "parts", "kept"]
    assert "http" not in page.replace("light-dark", "")
    assert page.count("<tr>") == page.count("</tr>") > 5
