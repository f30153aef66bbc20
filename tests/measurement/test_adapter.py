"""Adapters of PEFT are measured and described together with the model that they change."""

import re

import pytest
import tiny
import torch
import yaml

pytest.importorskip("peft")
from peft import LoraConfig, PeftModel, get_peft_model

from hf_compress import QuantizationConfig, export, measure, quantize
from hf_compress.errors import ConfigError
from hf_compress.hub.card import create_card
from hf_compress.hub.config import CardInfo
from hf_compress.measurement.load import load_measured

QUICK = {"batch_sizes": (1,), "rounds": 1, "seconds": 0.0, "length": 8, "memory": False}


def save_adapter(base, folder):
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(tiny.BertForSequenceClassification.from_pretrained(base), lora)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def base(tmp_path):
    tiny.bert(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("is_quantized", [False, True], ids=["plain", "4 bit"])
def test_an_adapter_counts_with_its_base_and_runs_on_it(base, tmp_path, is_quantized):
    if is_quantized:
        base = quantize(base, tmp_path / "small", QuantizationConfig("nf4"))
    model = save_adapter(base, tmp_path / "adapter")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert torch.allclose(load_measured(tmp_path / "adapter")(input_ids=ids).logits, expected, atol=1e-5)
    before, after = measure({"base": base, "adapter": tmp_path / "adapter"}, **QUICK, evaluate=lambda _: {"f1": 0.5})
    own = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    learnt = 2 * 2 * 2 * 4 * 64 + 2 * 64 + 2  # layers, matrices, factors, rank by width; the classifier's copy
    assert after.get("adapter_bytes").value == own
    assert after.get("bytes_on_disk").value == before.get("bytes_on_disk").value + own
    assert after.get("parameters").value == before.get("parameters").value + learnt
    assert after.method["architecture"] == "BertForSequenceClassification"
    assert after.method["adapter"]["base"] == base.name
    assert ("quantization_config" in after.method) == is_quantized
    assert str(tmp_path) not in str(after.to_dict())
    assert not any("quantized from" in note for note in after.notes)


def test_the_card_of_an_adapter_names_its_base_and_its_code_runs(base, tmp_path, monkeypatch):
    save_adapter(base, tmp_path / "adapter")
    records = measure({"base": base, "adapter": tmp_path / "adapter"}, **QUICK)
    info = CardInfo("adapter", base_model="org/base", repo_id="org/adapter")
    card = create_card(tmp_path / "adapter", records, info=info).read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("org/base", "adapter")
    assert front["library_name"] == "peft"
    assert "peft" in re.search(r"pip install (.*)", card)[1].split()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    names: dict = {}
    exec(code.replace("org/base", str(base)).replace("org/adapter", str(tmp_path / "adapter")), names)
    assert isinstance(names["model"], PeftModel)


@pytest.mark.parametrize("what", ["base", "weights", "json"])
def test_an_adapter_that_lacks_something_says_what(base, tmp_path, what):
    save_adapter(base, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    if what == "base":
        config.write_text(config.read_text().replace(str(base), "org/nowhere"))
    elif what == "weights":
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    else:
        config.write_text("[1]")
    message = {"base": "hf download org/nowhere", "weights": "has no adapter_model", "json": "must hold a mapping"}
    with pytest.raises(ConfigError, match=message[what]):
        measure(tmp_path / "adapter", **QUICK)


@pytest.mark.parametrize("use", ["quantize", "export"])
def test_what_takes_whole_models_refuses_an_adapter(base, tmp_path, use):
    if use == "export":
        tiny.needs_onnx()
    uses = {"quantize": quantize, "export": lambda folder, output: export(folder, "onnx", output)}
    save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="merge it into its base"):
        uses[use](tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
