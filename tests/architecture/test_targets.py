import pytest
from torch import nn

from hf_compress.architecture.targets import find_targets
from hf_compress.errors import TargetError

OUTSIDE_THE_BODY = ("embed", "wte", "wpe", "shared", "norm", "ln_", "classifier", "lm_head", "head.dense", "relative")


def test_default_targets_are_all_the_matrices_of_the_layers(model):
    names = {t.name for t in find_targets(model)}
    expected = {n for n, p in model.named_parameters() if p.dim() == 2 and not any(o in n for o in OUTSIDE_THE_BODY)}
    # ViT's class token and position table have three dimensions, so they never count.
    assert names == expected


def test_targets_are_the_parameters_themselves_once(make):
    model = make("qwen3")
    targets = find_targets(model, include=["lm_head", "embed_tokens"])
    assert [t.name for t in targets] == ["model.embed_tokens.weight"]
    assert targets[0].parameter is model.lm_head.weight


def test_a_plain_module_keeps_its_last_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 4), nn.Linear(4, 2))
    assert [t.name for t in find_targets(model)] == ["0.weight", "2.weight"]


def test_include_and_exclude_are_searched_in_full_names(make):
    names = [
        t.name for t in find_targets(make("bert"), include=[r"layer\.0\..*bias"], exclude=["LayerNorm", "attention"])
    ]
    assert names == ["bert.encoder.layer.0.intermediate.dense.bias", "bert.encoder.layer.0.output.dense.bias"]


def test_frozen_weights_are_left_out_unless_named(make):
    model = make("bert", fresh=True)
    model.bert.encoder.layer[0].requires_grad_(False)
    assert not any("layer.0." in t.name for t in find_targets(model))
    assert find_targets(model, include=[r"layer\.0\.output\.dense\.weight"])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_the_near_one(make, option):
    with pytest.raises(TargetError, match=r"'intermediat.dense' matches no parameter.*'intermediate.dense'"):
        find_targets(make("bert"), **{option: [r"intermediat.dense"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["["]}, "no regular expression"),
        ({"include": "bert"}, "a list of patterns"),
        ({"exclude": ["."]}, "at least one parameter"),
    ],
    ids=["malformed", "string", "nothing left"],
)
def test_unusable_patterns_are_refused(make, options, message):
    with pytest.raises(TargetError, match=message):
        find_targets(make("bert"), **options)


def test_a_model_without_layers_has_no_target():
    with pytest.raises(TargetError, match="found none"):
        find_targets(nn.Embedding(3, 3))
