import json

import pytest
import transformers

from hf_compress.architecture.capability import inspect_model
from hf_compress.architecture.shrink import shrink
from hf_compress.errors import ArchitectureError


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_predicted_sizes_are_exact(family, model):
    report = inspect_model(model)
    assert report.parameters == count(model)
    for axis in report.axes:
        for p in axis.predictions:
            # From the first layer on: some models have parameters there that the others lack.
            is_depth = axis.name == "layers"
            what = {"layers": {axis.field: list(range(p.size))}} if is_depth else {axis.name: p.size}
            what = {"hidden": {axis.field: p.size}} if axis.name == "head_size" else what
            assert count(shrink(model, **what)) == p.parameters
            assert p.bytes == 4 * p.parameters
    ffn = next(axis for axis in report.axes if axis.name == "ffn")
    assert count(shrink(model, ffn=ffn.size - 3)) == report.parameters - 3 * ffn.parameters_per_unit


@pytest.mark.parametrize(
    ("family", "where", "words"),
    [
        ("bert", "fixed", "the size of a head follows from the width"),
        ("vit", "axes", "with their keys and values"),
        ("llama", "axes", "key-value heads, each with 2 query heads"),
    ],
)
def test_heads_are_explained(make, family, where, words):
    report = inspect_model(make(family))
    notes = [axis.note for axis in report.axes if axis.name == "heads"] if where == "axes" else [report.fixed["heads"]]
    assert len(notes) == 1
    assert words in notes[0]


def test_model_config_and_folder_give_the_same_report(make, tmp_path):
    model = make("bert", fresh=True)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    report = inspect_model(model)
    assert inspect_model(str(tmp_path)) == report
    assert inspect_model(transformers.AutoConfig.from_pretrained(tmp_path)) == report


def test_a_config_without_architectures_means_the_plain_model(make):
    assert inspect_model(transformers.BertConfig(num_hidden_layers=1)).model_class == "BertModel"


def test_report_as_text_and_data(make):
    report = inspect_model(make("llama"))
    text = str(report)
    for words in ("LlamaForCausalLM", "intermediate_size", "1-48", "multiples of 8", f"{report.parameters:,}"):
        assert words in text
    assert json.loads(json.dumps(report.to_dict()))["axes"][0]["field"] == "intermediate_size"


@pytest.mark.parametrize("source", [3, "/no/such/folder"], ids=["number", "missing folder"])
def test_other_things_are_refused(source):
    with pytest.raises(ArchitectureError, match="expected"):
        inspect_model(source)


def test_times_of_the_predicted_sizes_on_request(make):
    report = inspect_model(make("llama"), latency=True)
    times = [report.latency, *(p.latency for axis in report.axes for p in axis.predictions)]
    assert len(times) > 4
    assert all(0 < each < 10_000 for each in times)
    assert " ms" in report.to_text()
    assert " ms" not in inspect_model(make("llama")).to_text()
