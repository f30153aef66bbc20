"""Whole attention heads are removed wherever a config can say it, and refused with the reason elsewhere."""

import copy

import pytest
import tiny
import torch
import transformers as t

from hf_compress import PruningConfig, PruningTrainer, make_student, shrink
from hf_compress.architecture.attention import head_axes
from hf_compress.errors import ArchitectureError, ConfigError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 4}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
MODELS = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=8)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**GROUPED, head_dim=8)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GROUPED, head_dim=8)),
    "phi3, fused": lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED)),
    "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**GROUPED)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=2)),
    "t5, tied": lambda: t.T5ForConditionalGeneration(
        t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    ),
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**IMAGE)),
    "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**IMAGE)),
    "beit": lambda: t.BeitForImageClassification(t.BeitConfig(**IMAGE)),
    "dinov2": lambda: t.Dinov2ForImageClassification(t.Dinov2Config(**IMAGE)),
    "ast": lambda: t.ASTForAudioClassification(
        t.ASTConfig(**SIZES, max_length=40, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8)
    ),
}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_for(model):
    generator = torch.Generator().manual_seed(7)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 40, 16, generator=generator)}
    ids = torch.randint(3, 96, (2, 9), generator=generator)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


def silenced(model, kept):
    """The oracle: in each attention block the output of the other heads is zeroed before it is read."""
    model = copy.deepcopy(model)
    for group, units in zip(head_axes(model)[0].groups, kept, strict=True):
        path = next(p.parameter for p in group.slices if p.dim == 1 and p.per_unit > 1).rpartition(".")[0]
        reader = model.get_submodule(path)
        mask = torch.zeros(group.count, dtype=torch.bool)
        mask[units] = True
        mask = mask.repeat_interleave(reader.in_features // group.count)
        reader.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask, *args[1:]))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_removed_heads_are_those_that_are_silenced_and_the_result_loads_plainly(name, tmp_path):
    if name == "dinov2" and not tiny.dinov2_can_lose_heads():
        pytest.skip("the config of this transformers refuses other sizes of heads")
    model, generator = build(name), torch.Generator().manual_seed(1)
    (axis,) = head_axes(model)
    number = [n for n in axis.legal or range(1, axis.size) if n < axis.size][-1]
    chosen: dict[str, list[int]] = {}
    kept = [
        chosen.setdefault(
            group.tie or group.name, torch.randperm(axis.size, generator=generator)[:number].sort().values.tolist()
        )
        for group in axis.groups
    ]
    shrunk = shrink(model, heads=kept)
    assert shrunk.num_parameters() < model.num_parameters()
    shrunk.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        expected = silenced(model, kept)(**inputs_for(model)).logits
        found = again.eval()(**inputs_for(model)).logits
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_what_generates_still_does(tmp_path):
    for name in ("llama", "phi3, fused", "t5, tied"):
        shrunk = shrink(build(name), heads=2)
        written = shrunk.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
        cached = shrunk.generate(
            input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, use_cache=False
        )
        assert torch.equal(written, cached)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)), "size of a head follows from the width"),
        (lambda: t.ResNetForImageClassification(t.ResNetConfig()), "no field that counts attention heads"),
        (lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, num_key_value_heads=1)), "share their keys and values"),
    ],
    ids=["bert", "resnet", "one key-value head"],
)
def test_where_heads_cannot_go_the_reason_is_said(model, reason):
    with pytest.raises(ArchitectureError, match=reason):
        shrink(model(), heads=1)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (0, "from 1 to 4"),
        (5, "from 1 to 4"),
        (3, "one of 1, 2, 4, .* found 3; nearest legal: 4"),
        ([[0, 1, 2]] * 3, "nearest legal: 4"),
        (1.5, "above 0 and below 1"),
        ([[0]] * 2, "each of 3 layers"),
    ],
)
def test_illegal_numbers_are_refused(heads, message):
    with pytest.raises(ArchitectureError, match=message):
        shrink(build("llama"), heads=heads)


def test_tied_blocks_keep_the_same_heads():
    model = build("t5, tied")
    units = [[0, 1]] * len(head_axes(model)[0].groups)
    with pytest.raises(ArchitectureError, match="the same units in all of"):
        shrink(model, heads=[[0, 2], *units[1:]])


@pytest.mark.parametrize("name", ["llama", "phi3, fused", "t5, tied", "vit"])
def test_heads_pruned_in_the_trainer_are_removed_afterwards(name, tmp_path):
    model = build(name).train()
    inputs = inputs_for(model)
    rows = [{k: v[0] for k, v in inputs.items()} for _ in range(8)]
    rows = [{**r, "labels": r["input_ids"] if "input_ids" in r else torch.tensor(1)} for r in rows]
    arguments = t.TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    pruning = PruningConfig(0.5, "heads", frequency=1, begin=0.0, end=0.5)
    trainer = PruningTrainer(model, arguments, pruning=pruning, train_dataset=rows)
    trainer.train()
    folder = trainer.save_compressed(tmp_path / "small")["model"]
    small = type(model).from_pretrained(folder).eval()
    half = head_axes(model)[0].size // 2
    assert head_axes(small)[0].size == half
    with torch.no_grad():
        torch.testing.assert_close(small(**inputs).logits, trainer.model.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_student_may_have_fewer_heads():
    student = make_student(build("llama"), layers=2, heads=2)
    config = student.config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.num_attention_heads) == (2, 2, 4)


def test_heads_have_one_number_for_all_layers():
    with pytest.raises(ConfigError, match="structure='heads' needs scope='uniform'"):
        PruningConfig(0.5, "heads", scope="global")
