import copy

import pytest
import tiny
import torch
import transformers
from torch import nn

from hf_compress.architecture.anatomy import expand_units, ffn_units, nonzero_units, unit_scores
from hf_compress.architecture.kept import evenly_spaced
from hf_compress.architecture.modes import outside_training
from hf_compress.architecture.shrink import shrink
from hf_compress.architecture.twin import Twin
from hf_compress.architecture.units import AxisSlice
from hf_compress.errors import ArchitectureError


def zero_units(model, dropped_per_layer):
    """Zero the given units of each layer, as pruning does."""
    parameters = dict(model.named_parameters())
    for group, dropped in zip(ffn_units(model), dropped_per_layer, strict=True):
        keep = torch.ones(group.count, dtype=torch.bool)
        keep[list(dropped)] = False
        for name, mask in expand_units(group, keep, parameters).items():
            parameters[name].data.mul_(mask)
    return model


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_zero_units_go_and_logits_stay(family, make, inputs_for):
    model = make(family, fresh=True)
    groups = ffn_units(model)
    zero_units(model, [range(layer % 3, 20) for layer in range(len(groups))])
    before, config = state(model), model.config.to_dict()
    shrunk = shrink(model)
    # The common width is what the neediest layer keeps: layer 2 has only 18 zero units.
    assert {group.count for group in ffn_units(shrunk)} == {groups[0].count - 18}
    torch.testing.assert_close(logits(shrunk, inputs_for(model)), logits(model, inputs_for(model)))
    assert type(shrunk) is type(model)
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_zeros_an_equal_copy_comes_back(model, inputs_for):
    copied = shrink(model)
    assert copied is not model
    assert copied.config.to_dict() == model.config.to_dict()
    assert all(torch.equal(tensor, copied.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_number_keeps_the_strongest_units(family, make):
    model = make(family)
    shrunk, fraction = shrink(model, ffn=12), shrink(model, ffn=12 / ffn_units(model)[0].count)
    for old, new in zip(ffn_units(model), ffn_units(shrunk), strict=True):
        strongest = unit_scores(old, dict(model.named_parameters())).sort(descending=True).values[:12]
        found = unit_scores(new, dict(shrunk.named_parameters()))
        torch.testing.assert_close(found.sort(descending=True).values, strongest)
    assert all(torch.equal(a, b) for a, b in zip(shrunk.parameters(), fraction.parameters(), strict=True))


def test_explicit_units_and_layers_keep_what_they_name(make):
    model = make("bert")
    units = [torch.tensor([0, 5, 9]) + layer for layer in range(4)]
    shrunk = shrink(model, ffn=units, layers=[1, 3])
    for new, old in enumerate((1, 3)):
        ours, theirs = shrunk.bert.encoder.layer[new], model.bert.encoder.layer[old]
        assert torch.equal(ours.intermediate.dense.bias, theirs.intermediate.dense.bias[units[old]])
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight[:, units[old]])
        assert torch.equal(ours.attention.self.query.weight, theirs.attention.self.query.weight)


@pytest.mark.parametrize(
    ("number", "size", "kept"),
    [(6, 12, [0, 2, 4, 7, 9, 11]), (2, 12, [0, 11]), (1, 12, [11]), (4, 4, [0, 1, 2, 3]), (3, 6, [0, 2, 5])],
)
def test_layers_are_spaced_evenly_with_first_and_last(number, size, kept):
    assert evenly_spaced(number, size) == kept


@pytest.mark.parametrize("family", ["bert", "vit", "llama", "gpt2", "qwen3"])
def test_fewer_layers_keep_the_last_and_the_head(make, family):
    model = make(family)
    stack = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    shrunk = shrink(model, layers=2)
    kept = max((m for m in shrunk.modules() if isinstance(m, nn.ModuleList)), key=len)
    assert len(kept) == 2
    for new, old in zip(kept, (stack[0], stack[3]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


def test_lists_with_an_element_per_layer_follow_the_layers(make):
    model = make("modernbert")
    kinds = model.config.layer_types
    shrunk = shrink(model, layers=[0, 2, 3])
    assert shrunk.config.layer_types == [kinds[0], kinds[2], kinds[3]]


def test_of_two_such_lists_both_follow_whichever_layers_go():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 96, "num_hidden_layers": 5, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.SmolLM3ForCausalLM(
        transformers.SmolLM3Config(**sizes, **heads, bos_token_id=1, eos_token_id=2)
    )
    rotated = model.config.no_rope_layers
    for gone in range(5):
        kept = [i for i in range(5) if i != gone]
        shrunk = shrink(model, layers=kept)
        assert shrunk.config.no_rope_layers == [rotated[i] for i in kept]
        assert len(shrunk.config.layer_types) == 4


def test_lists_of_that_length_by_chance_stay():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 96, "num_hidden_layers": 3}
    config = transformers.Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    config.suppress_tokens = [4, 5, 6]
    shrunk = shrink(transformers.Qwen3ForCausalLM(config), layers=2)
    assert shrunk.config.suppress_tokens == [4, 5, 6]
    assert shrunk.config.layer_types == ["full_attention"] * 2


def test_a_model_that_a_trainer_trained_in_bfloat16_is_compared_in_its_own_precision(tmp_path):
    model = tiny.bert()
    arguments = tiny.arguments(tmp_path, bf16=True, max_steps=1)
    transformers.Trainer(model, arguments, train_dataset=tiny.sentences()).train()
    wrapped = model.forward
    inputs = {name: value[None] for name, value in tiny.sentences(1)[0].items()}
    rounded = model.eval()(**inputs).logits
    shrunk = shrink(model, ffn=0.5)
    assert shrunk.config.intermediate_size == model.config.intermediate_size // 2
    # Training may go on in bfloat16; the smaller model never was in it.
    assert model.forward == wrapped
    assert torch.equal(model(**inputs).logits, rounded)
    with outside_training(model):
        assert (model(**inputs).logits - rounded).abs().max() > 1e-6
    assert not hasattr(shrunk, "_original_forward")


def test_any_number_of_positions_is_no_length():
    """XLNet's config says -1."""
    sizes = {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    model = transformers.XLNetForSequenceClassification(transformers.XLNetConfig(**sizes))
    assert shrink(model, ffn=0.5).config.d_inner == 24


def test_a_twin_tells_units_apart_where_outputs_saturate():
    """MobileBERT's norms do not norm, so the tanh of its pooler magnifies what float32 rounds."""
    config = transformers.MobileBertConfig(vocab_size=60, num_hidden_layers=2)
    twin = Twin(transformers.MobileBertModel, config)
    order = torch.randperm(config.intermediate_size, generator=torch.Generator().manual_seed(0))
    made = [name for name, p in twin.model.named_parameters() if len(p) == len(order) and ".intermediate." in name]
    read = [n for n, p in twin.model.named_parameters() if p.shape[1:] == order.shape and ".output.dense." in n]
    moves = [(AxisSlice(name, 0, 1, None), order) for name in made]
    assert not twin.is_unmoved_by(moves)
    assert twin.is_unmoved_by([*moves, *((AxisSlice(name, 1, 1, None), order) for name in read)])


def test_a_stream_in_each_layer_is_no_feed_forward_width():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    sizes |= {"vocab_size": 60, "num_hidden_layers": 2, "num_feedforward_networks": 2}
    model = transformers.MobileBertForSequenceClassification(transformers.MobileBertConfig(**sizes))
    smaller = shrink(model, ffn=0.5)
    assert (smaller.config.intermediate_size, smaller.config.true_hidden_size) == (24, 16)


def test_a_width_that_many_neurons_follow_from_can_go():
    """GPT-2 has four times as many unless its config says how many, and the twin of a large one has few."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=60, n_embd=264, n_layer=2, n_head=4))
    smaller = shrink(model, hidden=0.5)
    assert (smaller.config.n_embd, smaller.config.n_inner) == (132, 1056)


def test_two_stacks_need_a_dict(make):
    model = make("t5")
    with pytest.raises(ArchitectureError, match="dict.*num_layers.*num_decoder_layers"):
        shrink(model, layers=2)
    shrunk = shrink(model, layers={"num_layers": 2, "num_decoder_layers": [0, 1]})
    assert (len(shrunk.encoder.block), len(shrunk.decoder.block)) == (2, 2)
    with pytest.raises(ArchitectureError, match="keep the first one"):
        shrink(model, layers={"num_layers": [1, 3]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ffn": 0}, "1 to 48 .intermediate_size., found 0; nearest legal: 1"),
        ({"ffn": 49}, "found 49; nearest legal: 48"),
        ({"ffn": 1.5}, "above 0 and below 1, found 1.5"),
        ({"ffn": True}, "found True"),
        ({"ffn": "8"}, "found '8'"),
        ({"ffn": [[0]] * 3}, "each of 4 layers, found 3"),
        ({"ffn": [[0], [0], [0], [0, 1]]}, "same number of units in every layer.*nearest legal: 2"),
        ({"ffn": [[0], [48], [0], [1]]}, r"from 0 to 47.*found \[48\]"),
        ({"ffn": {"intermediate": 8}}, "did you mean 'intermediate_size'"),
        ({"layers": 5}, "nearest legal: 4"),
        ({"layers": 0}, "nearest legal: 1"),
        ({"layers": [0, 4]}, r"nearest legal: \[0, 3\]"),
        ({"layers": [1, 1]}, "distinct"),
        ({"layers": []}, "at least one"),
        ({"layers": 0.5}, "found 0.5"),
    ],
    ids=str,
)
def test_illegal_values_are_refused_before_anything_is_built(make, options, message):
    model = make("bert")
    before = state(model)
    with pytest.raises(ArchitectureError, match=message):
        shrink(model, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.intermediate_size == 48


def test_all_zero_layers_keep_one_unit(make):
    model = make("bert", fresh=True)
    assert shrink(zero_units(model, [range(48)] * 4)).config.intermediate_size == 1


def test_single_zeros_survive(make):
    model = make("bert", fresh=True)
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    weight.data[torch.rand(weight.shape) < 0.5] = 0
    shrunk = shrink(model, ffn=24)
    assert torch.equal(shrunk.bert.encoder.layer[0].attention.self.query.weight == 0, weight == 0)


def test_what_belongs_to_the_model_is_kept(make):
    model = make("qwen3", fresh=True).to(torch.bfloat16).train()
    model.config.id2label = {0: "no", 1: "yes"}
    model.config._name_or_path = "someone/model"
    model.generation_config.max_new_tokens = 17
    model.model.embed_tokens.requires_grad_(False)
    state_before = torch.random.get_rng_state()
    with torch.no_grad():
        shrunk = shrink(model, ffn=16, layers=3)
    assert torch.equal(torch.random.get_rng_state(), state_before)
    assert shrunk.training
    assert shrunk.dtype == torch.bfloat16
    assert shrunk.lm_head.weight is shrunk.model.embed_tokens.weight
    assert not shrunk.lm_head.weight.requires_grad
    assert shrunk.config.id2label == {0: "no", 1: "yes"}
    assert shrunk.name_or_path == "someone/model"
    assert shrunk.generation_config.max_new_tokens == 17
    ids = torch.tensor([[3, 4, 5]])
    assert shrunk.eval().generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= 5


def test_another_order_in_a_fused_matrix_is_caught(make, monkeypatch):
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    def interleaved(self, hidden_states):
        both = self.gate_up_proj(hidden_states)
        return self.down_proj(both[..., 1::2] * self.activation_fn(both[..., ::2]))

    monkeypatch.setattr(Phi3MLP, "forward", interleaved)
    model = make("phi3", fresh=True)
    with pytest.raises(ArchitectureError, match="outputs of the masked model"):
        shrink(model, ffn=24)
    assert shrink(model, ffn=24, verify=False).config.intermediate_size == 24


def test_models_that_cannot_be_shrunk_are_refused_clearly(make):
    resized = copy.deepcopy(make("bert"))
    resized.classifier = nn.Linear(32, 7)
    adapted = copy.deepcopy(make("bert"))
    adapted.peft_config = {}
    quantized = copy.deepcopy(make("bert"))
    quantized.config.quantization_config = {"load_in_4bit": True}
    with torch.device("meta"):
        empty = type(resized)(resized.config)
    for model, message in (
        (resized, "classifier.bias"),
        (adapted, "merge_and_unload"),
        (quantized, "quantize last"),
        (empty, "meta device"),
        (nn.Linear(2, 2), "PreTrainedModel"),
    ):
        with pytest.raises(ArchitectureError, match=message):
            shrink(model, ffn=24)


def test_zero_units_are_the_only_ones_that_go(make):
    model = zero_units(make("llama", fresh=True), [[3, 7], [3, 8], [1, 2], [46, 47]])
    shrunk = shrink(model)
    assert shrunk.config.intermediate_size == 46
    assert all(nonzero_units(g, dict(shrunk.named_parameters())).all() for g in ffn_units(shrunk))
