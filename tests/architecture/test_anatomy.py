import pytest
import torch
import transformers
from torch import nn

from hf_compress.architecture.anatomy import (
    AxisSlice,
    expand_units,
    ffn_units,
    nonzero_units,
    probe,
    unit_scores,
)
from hf_compress.architecture.units import kept_index
from hf_compress.errors import ArchitectureError

FFN = {
    "bert": ("intermediate_size", 48),
    "vit": ("intermediate_size", 48),
    "llama": ("intermediate_size", 48),
    "qwen3": ("intermediate_size", 48),
    "gpt2": ("n_inner", 128),
    "phi3": ("intermediate_size", 48),
    "distilbert": ("hidden_dim", 48),
    "modernbert": ("intermediate_size", 48),
    "t5": ("d_ff", 48),
}
DEPTH = {"gpt2": {"n_layer": 4}, "distilbert": {"n_layers": 4}, "t5": {"num_layers": 4, "num_decoder_layers": 3}}


def test_width_and_depth_are_found_by_probing(family, model):
    anatomy = probe(model)
    assert [(axis.field, axis.size) for axis in anatomy.named("ffn")] == [FFN[family]]
    assert {axis.field: axis.size for axis in anatomy.named("layers")} == DEPTH.get(family, {"num_hidden_layers": 4})


def test_heads_are_told_from_what_a_config_cannot_say(make):
    assert [axis.field for axis in probe(make("llama")).named("heads")] == ["num_attention_heads"]
    assert [axis.field for axis in probe(make("llama")).named("kv_heads")] == ["num_key_value_heads"]
    assert not probe(make("vit")).named("heads")
    assert probe(make("bert")).fixed["num_attention_heads"] == "changes no shape"


def test_probing_leaves_config_and_random_stream_alone(make):
    model = make("modernbert", fresh=True)
    before, state = model.config.to_dict(), torch.random.get_rng_state()
    config = transformers.ModernBertConfig.from_dict({**before, "intermediate_size": 40})
    probe(type(model)(config))
    torch.random.set_rng_state(state)
    model.config.intermediate_size = 56
    probe(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.to_dict() == {**before, "intermediate_size": 56}


def test_each_layer_has_one_group_with_every_coupled_parameter(family, model):
    groups = ffn_units(model)
    layers = [0, 1, 2, 3, 0, 1, 2] if family == "t5" else [0, 1, 2, 3]
    assert [group.layer for group in groups] == layers
    inner = {n for n, p in model.named_parameters() if any(FFN[family][1] * k in p.shape for k in (1, 2))}
    inner = {n for n in inner if not any(e in n for e in ("embed", "shared", "wte", "wpe", "lm_head", "attn"))}
    assert {piece.parameter for group in groups for piece in group.slices} == inner


def naive_entries(piece, unit, count, parameter):
    """Every index of `parameter` that belongs to `unit`, one at a time."""
    dims = [range(n) for n in parameter.shape]
    dims[piece.dim] = [unit + block * count for block in range(piece.per_unit)]
    return [
        tuple(i) for i in torch.cartesian_prod(*map(torch.tensor, map(list, dims))).reshape(-1, len(dims)).tolist()
    ]


@pytest.mark.parametrize("family", ["bert", "gpt2", "phi3"])
def test_masks_and_scores_equal_a_naive_loop(make, family):
    model = make(family)
    group = ffn_units(model)[1]
    parameters = dict(model.named_parameters())
    keep = torch.rand(group.count, generator=torch.Generator().manual_seed(0)) > 0.5
    masks = expand_units(group, keep, parameters)
    squares = torch.zeros(group.count)
    for piece in group.slices:
        parameter = parameters[piece.parameter].detach()
        for unit in (0, 1, group.count // 2, group.count - 1):
            for entry in naive_entries(piece, unit, group.count, parameter):
                squares[unit] += parameter[entry] ** 2
                assert masks[piece.parameter][entry] == keep[unit]
        assert masks[piece.parameter].shape == parameter.shape
    checked = squares > 0
    torch.testing.assert_close(unit_scores(group, parameters)[checked], squares[checked].sqrt())


def test_fused_units_lie_a_whole_block_apart():
    piece = AxisSlice("gate_up", dim=0, per_unit=2, layer=0)
    assert kept_index([(piece, torch.tensor([1, 3]), 5)], 10).tolist() == [1, 3, 6, 8]


def test_queries_between_keys_and_values_of_each_head_are_cut_without_moving_them():
    # Two heads of three entries each: query, key, value, query, key, value.
    query = AxisSlice("qkv", 0, 1, layer=0, block=3, every=9)
    key = AxisSlice("qkv", 0, 1, layer=0, start=3, block=3, every=9)
    cuts = [(query, torch.tensor([0, 1, 3, 5]), 6), (key, torch.tensor([0, 1, 4, 5]), 6)]
    assert kept_index(cuts, 18).tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17]


def test_a_tiny_weight_is_not_zero(make):
    model = make("bert")
    group = ffn_units(model)[0]
    parameters = {s.parameter: torch.zeros(model.get_parameter(s.parameter).shape) for s in group.slices}
    parameters[group.slices[0].parameter][5, 0] = 1e-30
    assert nonzero_units(group, parameters).nonzero().flatten().tolist() == [5]


def test_models_without_such_an_axis_are_refused_clearly():
    with pytest.raises(ArchitectureError, match="config"):
        probe(nn.Linear(2, 2))
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    with pytest.raises(ArchitectureError, match="feed-forward width"):
        ffn_units(transformers.ResNetForImageClassification(config))
