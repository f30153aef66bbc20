"""Saved models that are not what they say: junk in the config, weights that lie elsewhere or are cut."""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import tiny
from hypothesis import strategies as st

from hf_compress import inspect_model, measure, quantize
from hf_compress.errors import ConfigError, HfCompressError
from hf_compress.measurement.load import load_model, model_class, read_config, weight_files
from hf_compress.measurement.size import measure_size

from .inputs import JSON, bad_inputs, refused

CONFIG = json.loads(tiny.bert().config.to_json_string())


@st.composite
def configs(draw):
    data = copy.deepcopy(CONFIG)
    for _ in range(draw(st.integers(1, 2))):
        data[draw(st.sampled_from(["architectures", "model_type", "quantization_config", "x"]))] = draw(
            st.one_of(
                JSON,
                st.sampled_from(
                    [
                        ["pipeline"],
                        ["utils"],
                        ["Trainer"],
                        ["__file__"],
                        "bert",
                        [5],
                        ["BertConfig"],
                        {"quant_method": 1},
                    ]
                ),
            )
        )
    return data


@bad_inputs(configs(), few=80, many=1000)
def test_a_config_of_anything_has_a_class_or_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(data))
        assert isinstance(refused(read_config, folder), dict)
        found = refused(model_class, folder)
        assert isinstance(found, HfCompressError) or hasattr(found, "from_pretrained")
        assert isinstance(refused(weight_files, folder), ConfigError)
        assert isinstance(refused(measure_size, folder), HfCompressError)


@pytest.fixture
def model(tmp_path):
    tiny.bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


CALLS = {
    "load": load_model,
    "size": measure_size,
    "measure": lambda f: measure(f, memory=False),
    "quantize": lambda f: quantize(f, Path(f).parent / "out"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "..", "", "a\0b", 5, None, "x" * 5000])
def test_an_index_leads_nowhere_else(model, call, place):
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny.bert().state_dict(), place)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HfCompressError):
        CALLS[call](model)
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("weights", [b"", b"\0" * 7, b"\xff" * 64, (2).to_bytes(8, "little") + b"{}", "cut"])
def test_broken_weights_are_refused(model, call, weights):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if weights == "cut" else weights)
    with pytest.raises(HfCompressError):
        CALLS[call](model)
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model_type": "bert"}', '{"model_type": 5}', "[" * 10**5,
                                  '{"model_type": "bert", "hidden_size": "wide"}',
                                  '{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": -4}',
                                  '{"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 2.5}',
                                  '{"model_type": "bert", "architectures": ["BertModel"], "num_attention_heads": 0}'],
                         ids=range(11))  # fmt: skip
@pytest.mark.parametrize("call", [*CALLS, "inspect"])
def test_a_config_that_builds_no_model_is_refused(model, call, text):
    if call == "inspect" and text == '{"model_type": "bert"}':
        return  # all defaults: a model
    (model / "config.json").write_text(text)
    with pytest.raises(HfCompressError):
        {**CALLS, "inspect": inspect_model}[call](model)
    assert not (model.parent / "out").exists()
