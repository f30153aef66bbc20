"""Exported models: equal to the torch model, in 8 bit near it, measured like any model, and loaded without us."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification, Trainer

from hf_compress import QuantizationConfig, export, measure, quantize
from hf_compress.errors import ConfigError, DataError, MissingDependencyError, OutputExistsError, QuantizationError
from hf_compress.measurement.exported import ExportedModule
from hf_compress.measurement.inputs import dummy_inputs

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def needs(format, quantized=False):
    if format == "openvino":
        pytest.importorskip("openvino")
        if quantized:
            pytest.importorskip("nncf")


def resnet(**_):
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


def difference(model, folder, inputs):
    with torch.no_grad():
        wanted, found = model.eval()(**inputs)[0], ExportedModule(folder, "cpu", is_exact=True)(**inputs)[0]
    return float((wanted - found).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("make", "format"), [(tiny.bert, "onnx"), (tiny.llama, "openvino"), (tiny.vit, "onnx"), (resnet, "openvino")]
)
def test_as_it_is_it_gives_the_outputs_of_the_model_for_any_batch(tmp_path, make, format):
    needs(format)
    model = make(**WIDE)
    model.save_pretrained(tmp_path / "source")
    folder = export(tmp_path / "source", format, tmp_path / "out")
    for batch in (1, 5):
        assert difference(model, folder, dummy_inputs(model, batch, 32 if make is resnet else None)) < 1e-4
    assert json.loads((folder / "compression.json").read_text())["difference"] < 1e-4


@pytest.mark.parametrize("quantization", [None, "dynamic", "static"])
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_no_file_names_a_folder_of_this_machine(tmp_path, format, quantization):
    needs(format, quantization is not None)
    model = tiny.bert()
    folder = export(model, format, tmp_path / "out", quantization=quantization, batches=[dummy_inputs(model, 2)] * 3)
    own, installed = Path(__file__).parents[1], Path(torch.__file__).parents[1]
    for file in folder.iterdir():
        found = file.read_bytes()
        assert not any(str(place).encode() in found for place in (own, installed, tmp_path)), file.name


@pytest.mark.parametrize(
    ("make", "quantization", "format"),
    [
        (tiny.bert, "dynamic", "onnx"),
        (tiny.bert, "dynamic", "openvino"),
        (tiny.bert, "static", "openvino"),
        (resnet, "static", "onnx"),
    ],
)
def test_in_8_bit_it_is_near_and_smaller(tmp_path, make, quantization, format):
    needs(format, quantized=True)
    model = make(**WIDE)
    model.save_pretrained(tmp_path / "source")
    batches = [dummy_inputs(model, 4, 32 if make is resnet else None, seed=seed) for seed in range(4)]
    folder = export(tmp_path / "source", format, tmp_path / "out", quantization=quantization, batches=batches)
    assert difference(model, folder, batches[0]) < 0.2
    weights = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".data", ".bin"))
    assert weights < 0.5 * sum(p.numel() * 4 for p in model.parameters())


def test_pairs_of_products_of_convolutions_fit_16_bits_as_processors_without_vnni_add_them(tmp_path):
    needs("onnx", quantized=True)
    import onnx

    model = resnet()
    folder = export(model, "onnx", tmp_path / "out", quantization="static", batches=[dummy_inputs(model, 4, 32)])
    graph = onnx.load(folder / "model.onnx").graph
    codes = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    unpacked = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    largest = {
        kind: [abs(codes[unpacked[n.input[1]]].astype(int)).max() for n in graph.node if n.op_type == kind]
        for kind in ("Conv", "Gemm")
    }
    assert len(largest["Conv"]) > 1
    assert all(2 * 255 * code < 2**15 for code in largest["Conv"])
    assert all(code == 127 for code in largest["Gemm"])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_static_ranges_are_those_of_exactly_the_samples_given(tmp_path, format, monkeypatch):
    needs(format, quantized=True)
    from transformers.exporters.quantizers import base

    model, seen = tiny.bert(**WIDE), []
    iterate = base.CalibrationSet.__iter__
    monkeypatch.setattr(
        base.CalibrationSet, "__iter__", lambda self: (seen.append(sample) or sample for sample in iterate(self))
    )
    batches = [dummy_inputs(model, 2, seed=seed) | {"labels": torch.zeros(2).long()} for seed in range(5)]
    folder = export(model, format, tmp_path / "out", quantization="static", batches=batches)
    passes, rest = divmod(len(seen), 5)
    assert passes >= 1
    assert rest == 0
    for sample, batch in zip(seen, batches * passes, strict=True):
        given = [torch.as_tensor(v) for v in sample.values()] if hasattr(sample, "values") else sample
        assert any(t.shape == batch["input_ids"].shape and torch.equal(t, batch["input_ids"]) for t in given)
    report = json.loads((folder / "compression.json").read_text())
    assert (report["samples"], report["quantization"]) == (10, "static")


def test_a_fresh_process_without_hf_compress_runs_it(tmp_path):
    model = tiny.bert(**WIDE).eval()
    folder = export(model, "onnx", tmp_path / "out", quantization="dynamic")
    inputs = dummy_inputs(model, 2)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys, torch\nfrom transformers.exporters import ExportedModel\n"
        f"out = ExportedModel.from_pretrained({str(folder)!r})(**torch.load({str(tmp_path / 'inputs.pt')!r}),"
        " token_type_ids=torch.zeros(2, 16).long())\n"
        f"torch.save(out.logits.clone(), {str(tmp_path / 'out.pt')!r})\nassert 'hf_compress' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.allclose(torch.load(tmp_path / "out.pt"), ExportedModule(folder)(**inputs).logits, atol=1e-5)


def test_measured_beside_the_model_by_the_same_code(tmp_path):
    model = tiny.bert(**WIDE)
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", "onnx", tmp_path / "int8", quantization="dynamic")
    asked = []

    def evaluate(each):
        asked.append(each(**dummy_inputs(each, 2), labels=torch.zeros(2).long()).logits)
        return {"accuracy": 0.5}

    folders = {"dense": tmp_path / "source", "int8": tmp_path / "int8"}
    dense, int8 = measure(folders, evaluate=evaluate, batch_sizes=(1,), rounds=2, seconds=0.0, warmup=1)
    assert asked[1].shape == asked[0].shape
    for name in ("bytes_on_disk", "latency", "peak_memory", "parameters", "accuracy"):
        assert int8.find(name), name
    assert int8.find("parameters")[0].value == dense.find("parameters")[0].value
    assert not int8.find("macs")
    assert int8.method["export"]["quantization"] == "dynamic"
    files = [p for p in (tmp_path / "int8").iterdir() if p.name.startswith("model.onnx")]
    assert int8.find("bytes_on_disk")[0].value == sum(p.stat().st_size for p in files)


def test_other_sizes_in_each_layer_are_exported_too(tmp_path):
    from hf_compress import OneShotConfig, prune_oneshot, save_per_layer

    model = tiny.bert(**WIDE)
    batches = [{**dummy_inputs(model, 4, seed=s), "labels": torch.tensor([0, 1, 0, 1])} for s in range(2)]
    config = OneShotConfig(keep={"ffn": 0.5}, layout="per_layer")
    smaller = prune_oneshot(model, config, batches)
    save_per_layer(smaller, tmp_path / "folder")
    folder = export(smaller, "onnx", tmp_path / "out")
    assert difference(smaller, folder, dummy_inputs(model, 3)) < 1e-4
    assert measure(folder, batch_sizes=(1,), rounds=1, seconds=0.0, memory=False)[0].find("latency")


def test_refusals_write_nothing(tmp_path, monkeypatch):
    model = tiny.bert(**WIDE)
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "nf4", QuantizationConfig("nf4"))
    out = tmp_path / "out"
    cases = [
        ({"format": "tflite"}, ConfigError, "unknown export format 'tflite'"),
        ({"format": "onnx", "quantization": "int3"}, ConfigError, "quantization must be none, dynamic, static"),
        ({"format": "onnx", "quantization": "static"}, DataError, "calibrated on samples"),
        ({"format": "onnx", "tolerance": 0.0, "quantization": "dynamic"}, QuantizationError, "nothing was written"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            export(tmp_path / "source", output=out, **options)
    with pytest.raises(QuantizationError, match="export its 16- or 32-bit source"):
        export(tmp_path / "nf4", "onnx", out)
    with pytest.raises(OutputExistsError):
        export(tmp_path / "source", "onnx", tmp_path / "nf4")
    (tmp_path / "source" / "export.json").write_text("{}")
    with pytest.raises(QuantizationError, match="source is exported already"):
        export(tmp_path / "source", "onnx", out)
    (tmp_path / "source" / "export.json").unlink()
    from hf_compress import imports

    monkeypatch.setattr(imports, "is_available", lambda package: False)
    with pytest.raises(MissingDependencyError, match="pip install onnx"):
        export(tmp_path / "source", "onnx", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nf4", "source"]


def test_a_broken_manifest_is_one_clear_error(tmp_path):
    folder = export(tiny.bert(), "onnx", tmp_path / "out")
    (folder / "model.onnx").unlink()
    with pytest.raises(ConfigError, match=r"lacks model\.onnx"):
        measure(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(ConfigError, match="no manifest"):
        measure(folder)


def test_a_model_without_a_head_is_exported(tmp_path):
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **tiny.WIDTH))
    folder = export(model, "onnx", tmp_path / "out")
    assert difference(model, folder, dummy_inputs(model, 3)) < 1e-4


def test_a_model_that_a_trainer_trained_in_bfloat16_is_exported_in_its_own_precision(tmp_path):
    pytest.importorskip("openvino")
    model = tiny.bert()
    arguments = tiny.arguments(tmp_path / "run", bf16=True, max_steps=1)
    Trainer(model, arguments, train_dataset=tiny.sentences()).train()
    export(model, "openvino", tmp_path / "exported")
    assert json.loads((tmp_path / "exported/compression.json").read_text())["difference"] < 1e-5
    assert "bf16" not in (tmp_path / "exported/openvino_model.xml").read_text()
