"""Each scheme: a folder that stock transformers loads the same again; what does not fit is refused or left alone."""

import json

import pytest
import tiny
import torch
from architectures import build
from safetensors import safe_open
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_compress import QuantizationConfig, quantize
from hf_compress.errors import ConfigError, MissingDependencyError, QuantizationError, UnsupportedError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.quantization import api, schemes
from hf_compress.quantization.bnb import quantized_layers
from hf_compress.quantization.schemes import SCHEMES, scheme_of

WIDE = {"hidden_size": 64, "intermediate_size": 128}
TORCHAO = ["torchao-int8", "torchao-int8-dynamic", "torchao-int4"]


def logits(model, inputs):
    with torch.inference_mode():
        return model.eval()(**inputs).logits.float()


@pytest.mark.parametrize("scheme", TORCHAO)
@pytest.mark.parametrize("make", [tiny.bert, tiny.llama, tiny.vit])
def test_torchao_comes_back_the_same_and_holds_what_rounding_says(tmp_path, scheme, make):
    pytest.importorskip("torchao")
    model = make(**WIDE)
    model.save_pretrained(tmp_path / "source")
    config = QuantizationConfig(scheme)
    quantize(tmp_path / "source", tmp_path / "quantized", config)
    again = type(model).from_pretrained(tmp_path / "quantized")
    inputs = dummy_inputs(model, 2)
    wanted = logits(model, inputs)
    assert (logits(again, inputs) - wanted).norm() / wanted.norm() < (0.2 if "int4" in scheme else 0.02)
    layers = dict(api.linear_layers(model, ["classifier", "lm_head"]))
    assert len(layers) >= 8
    for name, layer in layers.items():
        stored = again.get_submodule(name).weight.dequantize()
        assert torch.equal(stored, scheme_of(config).rounds(layer.weight.detach(), config)), name


def test_gpt2s_transposed_layers_are_quantized(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=50, n_positions=32))
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig("nf4"))
    with safe_open(tmp_path / "quantized" / "model.safetensors", "pt") as file:
        assert file.get_tensor("transformer.h.0.mlp.c_fc.weight").dtype == torch.uint8


@pytest.mark.parametrize("scheme", ["int8", "torchao-int8"])
def test_what_is_not_quantized_is_stored_in_the_dtype_asked_for(tmp_path, scheme):
    if "torchao" in scheme:
        pytest.importorskip("torchao")
    tiny.bert(**WIDE).save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "plain", QuantizationConfig(scheme))
    quantize(tmp_path / "source", tmp_path / "small", QuantizationConfig(scheme, dtype="bfloat16"))
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        assert file.get_tensor("bert.embeddings.word_embeddings.weight").dtype == torch.bfloat16
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("plain", "small")]
    assert sizes[1] < 0.9 * sizes[0]


def test_layers_that_do_not_fit_are_left_alone(tmp_path):
    pytest.importorskip("torchao")
    model = tiny.bert(hidden_size=32, intermediate_size=48)
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig("torchao-int4", group_size=32))
    left = json.loads((tmp_path / "quantized" / "config.json").read_text())["quantization_config"]
    # 48 inputs make no groups of 32; 32 do.
    assert [n for n in left["modules_to_not_convert"] if "output.dense" in n] == [
        f"bert.encoder.layer.{i}.output.dense" for i in range(2)
    ]
    with pytest.raises(QuantizationError, match="32 inputs are no multiple of the group size 40"):
        quantize(tmp_path / "source", tmp_path / "none", QuantizationConfig("torchao-int4", group_size=40))


@pytest.mark.parametrize(
    ("hidden", "intermediate", "quantized"), [(96, 128, "output.dense"), (64, 100, "attention.output.dense")]
)
def test_4_bit_layers_that_bitsandbytes_fails_on_on_cpus_stay_as_they_are(tmp_path, hidden, intermediate, quantized):
    model = tiny.bert(hidden_size=hidden, intermediate_size=intermediate)
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig("nf4"))
    again = type(model).from_pretrained(tmp_path / "quantized")
    layers = {n: m.weight.dtype for n, m in again.named_modules() if n.endswith("dense") and "layer.0" in n}
    assert {n.split("layer.0.")[1] for n, dtype in layers.items() if dtype == torch.uint8} == {quantized}
    inputs = dummy_inputs(model, 2)
    wanted = logits(model, inputs)
    assert (logits(again, inputs) - wanted).norm() / wanted.norm() < 0.2


@pytest.mark.parametrize("scheme", TORCHAO)
def test_transposed_layers_that_torchao_leaves_alone_silently_are_refused(tmp_path, scheme):
    pytest.importorskip("torchao")
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "source")
    with pytest.raises(QuantizationError, match="its weight is transposed"):
        quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig(scheme))


@pytest.mark.parametrize(
    ("name", "scheme", "message"),
    [
        ("convnext", "int8", "pwconv1: its inputs have 4 dimensions"),
        ("wavlm", "int8", "fails in a forward pass, for int8.* name in skip_modules"),
        ("wav2vec2", "torchao-int8", "only into models that name their input embeddings"),
        ("bart", "torchao-int4", "a tensor outside of its modules .final_logits_bias."),
    ],
)
def test_models_that_a_scheme_cannot_run_or_load_are_refused_with_the_reason(tmp_path, name, scheme, message):
    if "torchao" in scheme:
        pytest.importorskip("torchao")
    build(name).save_pretrained(tmp_path / "source")
    with pytest.raises(QuantizationError, match=message):
        quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig(scheme))
    assert not (tmp_path / "quantized").exists()


def test_batches_stand_in_where_no_inputs_can_be_made_up(tmp_path):
    text = {"hidden_size": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    vision = {"hidden_size": 32, "patch_embed_hidden_size": 64, "d_ff": 48, "d_kv": 8, "num_hidden_layers": 2}
    config = Pix2StructConfig(text_config=text, vision_config={**vision, "num_attention_heads": 4, "seq_len": 30})
    model = Pix2StructForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedError, match="quantize: batches="):
        quantize(tmp_path / "source", tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()
    with pytest.raises(ConfigError, match="must be a batch"):
        quantize(tmp_path / "source", tmp_path / "quantized", batches=["a text"])
    # Two numbers say where a patch is.
    patches = torch.cat([torch.randint(8, (3, 16, 2)), torch.randn(3, 16, 64)], dim=-1)
    batch = {"flattened_patches": patches, "labels": torch.randint(2, 60, (3, 5))}
    quantize(tmp_path / "source", tmp_path / "quantized", batches=[batch])
    assert quantized_layers(type(model).from_pretrained(tmp_path / "quantized"))


def test_the_head_of_a_part_that_shares_its_weight_with_embeddings_is_left_alone(tmp_path):
    model = tiny.blip(hidden_size=64)
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized")
    again = type(model).from_pretrained(tmp_path / "quantized")
    held = quantized_layers(again)
    assert held
    assert "text_decoder.cls.predictions.decoder" not in held
    inputs = dummy_inputs(model, 2)
    wanted = logits(model, inputs)
    assert (logits(again, inputs) - wanted).norm() / wanted.norm() < 0.2


def test_layers_whose_inputs_bitsandbytes_cannot_run_are_left_alone(tmp_path):
    model = build("wavlm")
    model.save_pretrained(tmp_path / "source")
    config = QuantizationConfig(skip_modules=("q_proj", "k_proj", "v_proj", "out_proj"))
    quantize(tmp_path / "source", tmp_path / "quantized", config)
    again = type(model).from_pretrained(tmp_path / "quantized")
    held = {name.split("layers.0.")[1] for name in quantized_layers(again) if "layers.0." in name}
    assert held == {"feed_forward.intermediate_dense", "feed_forward.output_dense"}
    inputs = dummy_inputs(model, 2)
    wanted = logits(model, inputs)
    assert (logits(again, inputs) - wanted).norm() / wanted.norm() < 0.05


def test_experts_that_stay_as_they_are_are_named(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path / "source")
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    with pytest.warns(
        UserWarning, match=f"MixtralForCausalLM's experts, {experts / model.num_parameters():.0%} of its"
    ):
        quantize(tmp_path / "source", tmp_path / "quantized")
    again = type(model).from_pretrained(tmp_path / "quantized")
    assert {p.dtype for name, p in again.named_parameters() if "experts" in name} == {torch.float32}


def test_a_model_of_convolutions_is_refused(tmp_path):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path / "source")
    with pytest.raises(QuantizationError, match="no linear layer to quantize"):
        quantize(tmp_path / "source", tmp_path / "quantized")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheme": "int7"}, ConfigError, "unknown quantization scheme 'int7'"),
        ({"scheme": "nf4", "threshold": 3.0}, QuantizationError, "threshold is not for nf4"),
        ({"scheme": "int8", "double_quant": False}, QuantizationError, "double_quant is not for int8"),
        ({"scheme": "gptq", "aware": True}, QuantizationError, "cannot simulate gptq"),
        ({"scheme": "nf4", "aware": True, "activations": "dynamic"}, QuantizationError, "does not round activations"),
        ({"ranges": "learned"}, ConfigError, "ranges and activations are for aware=True"),
        ({"freeze": 1.5}, ConfigError, "freeze is a fraction"),
        ({"group_size": 0}, ConfigError, "group_size must be at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        scheme_of(QuantizationConfig(**options))


def test_calibrated_schemes_ask_for_samples_and_missing_packages_for_pip(tmp_path, monkeypatch):
    tiny.llama().save_pretrained(tmp_path / "source")
    monkeypatch.setattr(schemes, "require", lambda package, purpose: None)
    with pytest.raises(QuantizationError, match="gptq is calibrated on samples"):
        quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig("gptq"))
    monkeypatch.undo()
    from hf_compress import imports

    monkeypatch.setattr(imports, "is_available", lambda package: False)
    for name in SCHEMES:
        with pytest.raises(MissingDependencyError, match="install it with: pip install"):
            quantize(tmp_path / "source", tmp_path / "quantized", QuantizationConfig(name))


def test_a_quantized_model_refuses_full_training_and_says_how(tmp_path):
    from hf_compress import PruningTrainer

    tiny.bert(**WIDE).save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "quantized")
    model = type(tiny.bert()).from_pretrained(tmp_path / "quantized")
    with pytest.raises(ValueError, match="adapters"):
        PruningTrainer(model, tiny.arguments(tmp_path), train_dataset=tiny.sentences())
