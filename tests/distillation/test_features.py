"""Layer terms against loops over tokens."""

import math

import pytest
import torch

from hf_compress.distillation import features
from hf_compress.distillation.knowledge import relation_heads
from hf_compress.distillation.layer_map import LAYER_MAPS, explicit, kept

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def states(width=6, seed=0, length=4):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens():
    return [(b, t) for b in range(2) for t in range(4) if MASK[b, t]]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_hidden_mse_is_relative_to_the_teachers_mean_square():
    student, teacher = states(seed=1), states(seed=2)
    expected = 0.0
    for place in tokens():
        s, t = student[place].tolist(), teacher[place].tolist()
        expected += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / sum(b * b for b in t)
    total, count = features.hidden_mse(student, teacher, MASK)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert int(count) == 5
    scaled, _ = features.hidden_mse(7 * student, 7 * teacher, MASK)
    torch.testing.assert_close(scaled, total)


def test_hidden_cosine():
    student, teacher = states(seed=1), states(seed=2)
    expected = sum(1 - cosine(student[p].tolist(), teacher[p].tolist()) for p in tokens())
    assert float(features.hidden_cosine(student, teacher, MASK)[0]) == pytest.approx(expected, rel=1e-5)


def test_gram_compares_the_cosines_of_all_pairs_of_a_text_whatever_the_widths():
    student, teacher = states(6, 1), states(9, 2)
    expected = 0.0
    for b, t in tokens():
        others = [u for u in range(4) if MASK[b, u]]
        gaps = [
            cosine(student[b, t].tolist(), student[b, u].tolist())
            - cosine(teacher[b, t].tolist(), teacher[b, u].tolist())
            for u in others
        ]
        expected += sum(g * g for g in gaps) / len(others)
    assert float(features.gram_mse(student, teacher, MASK)[0]) == pytest.approx(expected, rel=1e-4)


def relation_rows(vectors, b, t, head, heads):
    width = vectors.shape[-1] // heads
    piece = vectors[..., head * width : (head + 1) * width]
    scores = [float(piece[b, t] @ piece[b, u]) / math.sqrt(width) for u in range(4) if MASK[b, u]]
    weights = [math.exp(s) for s in scores]
    return [w / sum(weights) for w in weights]


def test_relations_are_minilmv2s_with_other_widths_and_padding_left_out():
    student, teacher, heads = states(6, 1), states(12, 2), 3
    expected = 0.0
    for b, t in tokens():
        for head in range(heads):
            p, q = relation_rows(teacher, b, t, head, heads), relation_rows(student, b, t, head, heads)
            expected += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / heads
    total, count = features.relation_kl(student.requires_grad_(), teacher, MASK, heads)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    total.backward()
    assert student.grad.isfinite().all()
    assert int(count) == 5


@pytest.mark.parametrize("heads", [2, 3])
def test_attention_kl_compares_heads_or_their_means(heads):
    student = states(4, 1).new_tensor(torch.rand(2, 2, 4, 4).tolist()).softmax(-1)
    teacher = torch.rand(2, heads, 4, 4, dtype=torch.float64).softmax(-1)
    pairs = (
        zip(student.unbind(1), teacher.unbind(1), strict=True) if heads == 2 else [(student.mean(1), teacher.mean(1))]
    )
    pairs = list(pairs)
    expected = sum(
        sum(p * math.log(p / q) for p, q in zip(t[place].tolist(), s[place].tolist(), strict=True)) / len(pairs)
        for s, t in pairs
        for place in tokens()
    )
    assert float(features.attention_kl(student, teacher, MASK)[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["hidden_mse", "hidden_cosine", "gram_mse"])
def test_equal_states_give_nothing_and_no_token_gives_nothing(name):
    function = getattr(features, name)
    assert float(function(states(), states(), MASK)[0]) == pytest.approx(0, abs=1e-6)
    student = states(seed=1).requires_grad_()
    total, count = function(student, states(), torch.zeros_like(MASK))
    total.backward()
    assert float(total.detach()) == int(count) == 0
    assert not student.grad.any()


def test_layer_maps():
    assert LAYER_MAPS.get("uniform")(3, 6) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert LAYER_MAPS.get("uniform")(2, 3) == [(0, 0), (1, 2), (2, 3)]
    assert LAYER_MAPS.get("last")(3, 6) == [(3, 6)]
    assert kept([0, 2, 5]) == [(0, 0), (1, 1), (2, 3), (3, 6)]
    assert explicit(("1:2", "3:6"), 3, 6) == [(1, 2), (3, 6)]
    for pairs, message in ((("1-2",), "'student:teacher', found '1-2'"), (("4:1",), "student has 3 layers")):
        with pytest.raises(ValueError, match=message):
            explicit(pairs, 3, 6)


def test_relation_heads_divide_both_widths_and_are_not_too_narrow():
    assert relation_heads(384, 768) == 24
    assert relation_heads(384, 384) == 24
    assert relation_heads(100, 64) == 4
    assert relation_heads(7, 5) == 1
