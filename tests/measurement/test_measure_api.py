import pytest
import tiny
import torch

from hf_compress import QuantizationConfig, measure, quantize
from hf_compress.errors import ConfigError, RecordError
from hf_compress.measurement import api
from hf_compress.measurement.memory import measure_peak_memory
from hf_compress.measurement.record import load_records

QUICK = {"batch_sizes": (1,), "rounds": 3, "seconds": 0.0, "length": 8, "memory": False}


@pytest.fixture
def folders(tmp_path):
    model = tiny.bert(hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.zero_()
    model.save_pretrained(tmp_path / "dense")
    quantize(tmp_path / "dense", tmp_path / "small", QuantizationConfig("nf4"))
    return {"dense": tmp_path / "dense", "small": tmp_path / "small"}


def test_records_have_roles_quality_data_notes_and_files(folders, tmp_path):
    seen = []

    def evaluate(model):
        seen.append(type(model).__name__)
        return {"accuracy": 0.5 if len(seen) == 1 else 0.25}

    dataset = {"id": "toy", "split": "test", "samples": 4}
    methods = {"small": {"quantization": {"scheme": "nf4"}}}
    found = measure(folders, evaluate=evaluate, dataset=dataset, methods=methods, output_dir=tmp_path / "out", **QUICK)
    assert [(r.model, r.role) for r in found] == [("dense", "baseline"), ("small", "result")]
    assert [r.get("accuracy").value for r in found] == [0.5, 0.25]
    assert {r.dataset["samples"] for r in found} == {4}
    assert found[1].method["quantization"] == {"scheme": "nf4"}
    assert "classifier" in found[1].method["left_alone"]
    assert "weights are zero" in " ".join(found[0].notes)
    assert load_records(tmp_path / "out") == found
    assert str(tmp_path) not in str(found[0].to_dict())


def test_a_quantized_model_that_is_slower_than_its_source_says_so(folders):
    """4-bit layers of 64 by 128 unpack their weights at every call, which takes longer than the product itself."""
    found = measure(folders, **QUICK)
    slower = found[1].get("latency").value > 1.05 * found[0].get("latency").value
    assert slower == any("slower than" in note for note in found[1].notes)


def test_peak_memory_of_a_fresh_process_holds_at_least_the_weights(tmp_path):
    model = tiny.bert(hidden_size=256, intermediate_size=2048, num_hidden_layers=4)
    model.save_pretrained(tmp_path / "model")
    (record,) = measure(tmp_path / "model", **{**QUICK, "memory": True})
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert weights < record.get("peak_memory").value < 20 * weights


@pytest.mark.parametrize(
    ("models", "settings", "error", "message"),
    [
        ({}, {}, ConfigError, "no models to measure"),
        ({"gone": "nowhere"}, {}, ConfigError, "there is no model folder"),
        ({"../up": "nowhere"}, {}, ConfigError, "becomes a file name"),
        (None, {"batch_sizes": (0,)}, ConfigError, "whole numbers from 1"),
        (None, {"baseline": "dence"}, ConfigError, "did you mean 'dense'"),
        (None, {"rouns": 3}, ConfigError, "did you mean 'rounds'"),
        (None, {"evaluate": lambda model: {"accuracy": float("nan")}}, RecordError, "accuracy"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(folders, tmp_path, models, settings, error, message):
    with pytest.raises(error, match=message):
        measure(folders if models is None else models, output_dir=tmp_path / "out", **{**QUICK, **settings})
    assert not (tmp_path / "out").exists()


def test_one_bad_folder_refuses_all_before_anything_slow_starts(folders, monkeypatch):
    started = []
    monkeypatch.setattr(api, "measure_peak_memory", lambda *_, **__: [started.append("memory")])
    monkeypatch.setattr(api, "measure_latency", lambda *_, **__: started.append("speed"))
    with pytest.raises(ConfigError, match="there is no model folder"):
        measure({**folders, "gone": "nowhere"}, **{**QUICK, "memory": True})
    assert not started


def test_memory_of_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no model folder"):
        measure_peak_memory(tmp_path / "gone")


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({}, ["baseline", "intermediate", "result"]),
        ({"baseline": "c"}, ["intermediate", "result", "baseline"]),
        ({"result": "a"}, ["result", "baseline", "intermediate"]),
        ({"baseline": "b", "result": "a"}, ["result", "baseline", "intermediate"]),
    ],
)
def test_roles_follow_the_order_unless_named(folders, settings, roles):
    found = measure(dict.fromkeys("abc", folders["dense"]), **{**QUICK, "rounds": 1, "warmup": 0, **settings})
    assert [r.role for r in found] == roles
