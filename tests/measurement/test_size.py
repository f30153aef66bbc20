import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from hf_compress import QuantizationConfig, quantize
from hf_compress.errors import ConfigError
from hf_compress.measurement.size import count_parameters, measure_size

MODELS = {"bert": tiny.bert, "vit": tiny.vit, "llama": tiny.llama, "t5": tiny.t5}
TIED = {"tied-llama": lambda: tiny.llama(tie_word_embeddings=True)}


def by_name(measurements):
    return {m.name: m.value for m in measurements}


@pytest.mark.parametrize("name", [*MODELS, *TIED])
def test_counts_equal_a_loop_over_the_parameters(tmp_path, name):
    model = {**MODELS, **TIED}[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.view(-1)[: parameter.numel() // 3] = 0
    parameters = sum(p.numel() for p in model.parameters())
    zeros = sum(p.numel() // 3 for p in model.parameters())
    assert count_parameters(model) == {"parameters": parameters, "nonzeros": parameters - zeros}
    model.save_pretrained(tmp_path)
    found = by_name(measure_size(tmp_path))
    assert found["parameters"] == parameters
    assert found["nonzeros"] == parameters - zeros
    assert found["sparsity"] == pytest.approx(zeros / parameters)
    assert found["bytes_on_disk"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["folder_bytes"] == sum(p.stat().st_size for p in tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_a_quantized_folder_has_the_parameters_of_its_source(tmp_path, name, scheme):
    model = MODELS[name](hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "small", QuantizationConfig(scheme))
    found = by_name(measure_size(tmp_path / "small"))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes_on_disk"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert "nonzeros" not in found


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no config.json|no \\*.safetensors"):
        measure_size(tmp_path)


def saved_bert(folder):
    model = tiny.bert()
    model.save_pretrained(folder)
    return folder / "model.safetensors", sum(p.numel() for p in model.parameters())


def test_tensors_that_the_model_does_not_use_are_not_counted(tmp_path):
    file, parameters = saved_bert(tmp_path)
    save_file({"mask": torch.ones(1000)}, tmp_path / "pruning_state.safetensors")
    alone = by_name(measure_size(tmp_path))
    assert (alone["parameters"], alone["bytes_on_disk"]) == (parameters, file.stat().st_size)
    save_file({**load_file(file), "old.head": torch.ones(1000)}, file, {"format": "pt"})
    state = torch.random.get_rng_state()
    more = by_name(measure_size(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {k: more[k] for k in ("parameters", "nonzeros")} == {k: alone[k] for k in ("parameters", "nonzeros")}
    assert more["bytes_on_disk"] == file.stat().st_size > alone["bytes_on_disk"]


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    file, _ = saved_bert(tmp_path)
    save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 2 weights .* classifier"):
        measure_size(tmp_path)


def test_shards_are_counted_as_one_model_and_all_must_be_there(tmp_path):
    model = tiny.bert()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = by_name(measure_size(tmp_path))
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes_on_disk"] == sum(p.stat().st_size for p in shards)
    shards[0].unlink()
    with pytest.raises(ConfigError, match=shards[0].name):
        measure_size(tmp_path)
