import json
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors import safe_open

from hf_compress import QuantizationConfig, quantize
from hf_compress.errors import ConfigError, OutputExistsError, QuantizationError
from hf_compress.measurement.inputs import dummy_inputs

WIDE = {"hidden_size": 64, "intermediate_size": 128}
MODELS = {"bert": tiny.bert, "vit": tiny.vit, "llama": tiny.llama}

FRESH = """
import sys, torch, transformers
from safetensors.torch import save_file
folder, name = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder).eval()
inputs = torch.load(folder + "/../inputs.pt")
with torch.inference_mode():
    save_file({"logits": model(**inputs).logits.float().contiguous()}, folder + "/../logits.safetensors")
assert "hf_compress" not in sys.modules
"""


@pytest.fixture
def saved(tmp_path):
    def save(name):
        model = MODELS[name](**WIDE).eval()
        model.save_pretrained(tmp_path / "source")
        return model, tmp_path / "source", tmp_path / "quantized"

    return save


@pytest.mark.parametrize("scheme", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("name", MODELS)
def test_close_to_the_source_smaller_and_the_same_again_in_memory(saved, name, scheme):
    model, source, target = saved(name)
    quantize(source, target, QuantizationConfig(scheme))
    again = [type(model).from_pretrained(target).eval() for _ in range(2)]
    inputs = dummy_inputs(model, batch_size=2)
    with torch.inference_mode():
        logits = [m(**inputs)[0].float() for m in (model, *again)]
    assert torch.equal(logits[1], logits[2])
    assert (logits[0] - logits[1]).norm() / logits[0].norm() < {"int8": 0.05, "nf4": 0.5, "fp4": 0.5}[scheme]
    sizes = [sum(p.stat().st_size for p in f.glob("*.safetensors")) for f in (source, target)]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_fresh_process_without_hf_compress_loads_it_with_the_same_logits(saved, tmp_path):
    model, source, target = saved("bert")
    quantize(source, target, QuantizationConfig("nf4"))
    inputs = dummy_inputs(model, batch_size=2)
    torch.save(inputs, tmp_path / "inputs.pt")
    with torch.inference_mode():
        expected = type(model).from_pretrained(target).eval()(**inputs).logits
    command = [sys.executable, "-c", FRESH, str(target), type(model).__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    with safe_open(tmp_path / "logits.safetensors", "pt") as file:
        assert torch.allclose(file.get_tensor("logits"), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "head"), [("bert", "classifier.weight"), ("vit", "classifier.weight")])
def test_the_output_head_and_skipped_modules_stay_float(saved, name, head):
    _, source, target = saved(name)
    skipped = {"bert": "pooler.dense", "vit": "q_proj"}[name]
    quantize(source, target, QuantizationConfig("nf4", skip_modules=(skipped,)))
    with safe_open(next(target.glob("*.safetensors")), "pt") as file:
        dtypes = {key: file.get_tensor(key).dtype for key in file.keys()}
    assert dtypes[head] == torch.float32
    quantized = {k for k, d in dtypes.items() if k.endswith(".weight") and d == torch.uint8}
    assert quantized
    skip_config = json.loads((target / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert set(skip_config) == {"classifier", skipped}


def test_tokenizer_and_processor_files_come_along_and_pickles_do_not(saved):
    _, source, target = saved("bert")
    for name in ("tokenizer.json", "preprocessor_config.json", "training_args.bin", "README.md"):
        (source / name).write_text("{}")
    quantize(source, target)
    names = {p.name for p in target.iterdir()}
    assert {"tokenizer.json", "preprocessor_config.json"} < names
    assert not {"training_args.bin", "README.md"} & names


def test_refusals_write_nothing(saved, tmp_path):
    _, source, target = saved("bert")
    with pytest.raises(QuantizationError, match="skip_modules matches no module: poler"):
        quantize(source, target, QuantizationConfig(skip_modules=("poler",)))
    with pytest.raises(ConfigError, match="there is no model folder"):
        quantize(tmp_path / "missing", target)
    with pytest.raises(QuantizationError, match="no linear layer to quantize"):
        quantize(source, target, QuantizationConfig(skip_modules=("bert",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    quantize(source, target)
    before = (target / "config.json").read_bytes()
    with pytest.raises(OutputExistsError, match="already holds something"):
        quantize(source, target)
    assert (target / "config.json").read_bytes() == before
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize(target, tmp_path / "twice")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quantized", "source"]


def test_a_save_that_reads_back_differently_is_refused(saved, tmp_path, monkeypatch):
    """What bitsandbytes does on some CPUs to 4-bit weights that are saved after their first forward pass."""
    from transformers import BertForSequenceClassification

    _, source, target = saved("bert")
    honest = BertForSequenceClassification.save_pretrained

    def corrupting(self, folder, **options):
        with torch.no_grad():
            self.classifier.weight.mul_(1.1)
        honest(self, folder, **options)
        with torch.no_grad():
            self.classifier.weight.div_(1.1)

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", corrupting)
    with pytest.raises(QuantizationError, match="gives other outputs"):
        quantize(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
