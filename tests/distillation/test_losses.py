"""Divergences against loops over plain numbers, and how `reduce` picks and scales rows."""

import math

import pytest
import torch

from hf_compress.distillation.losses import DIVERGENCES, forward_kl
from hf_compress.distillation.reduce import divergence_term, valid_positions


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def softmax(logits):
    weights = [math.exp(v) for v in logits]
    return [w / sum(weights) for w in weights]


def half_mse(s, t):
    gaps = [a - b for a, b in zip(s, t, strict=True)]
    mean = sum(gaps) / len(gaps)
    return sum((g - mean) ** 2 for g in gaps) / len(gaps) / 2


def towards(s, t, share):
    return softmax([(1 - share) * a + share * b for a, b in zip(s, t, strict=True)])


# Of the logits of one row: student s and teacher t, with probabilities q and p.
FORMULAS = {
    "forward_kl": ({}, lambda s, t, q, p: kl(p, q)),
    "reverse_kl": ({}, lambda s, t, q, p: kl(q, p)),
    "jsd": ({"beta": 0.3}, lambda s, t, q, p: 0.3 * kl(p, mixed(p, q, 0.3)) + 0.7 * kl(q, mixed(p, q, 0.3))),
    "skewed_kl": ({"alpha": 0.2}, lambda s, t, q, p: kl(p, mixed(p, q, 0.2))),
    "skewed_reverse_kl": ({"alpha": 0.2}, lambda s, t, q, p: kl(q, mixed(q, p, 0.2))),
    "soft_cross_entropy": ({}, lambda s, t, q, p: -sum(a * math.log(b) for a, b in zip(p, q, strict=True))),
    "mse": ({}, lambda s, t, q, p: half_mse(s, t)),
    "taid": ({"progress": 0.5, "start": 0.2}, lambda s, t, q, p: kl(towards(s, t, 0.6), q)),
}


def logits(rows=4, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equals_its_formula_as_a_loop(name):
    options, formula = FORMULAS[name]
    student, teacher = logits(seed=1), logits(seed=2)
    expected = sum(
        formula(s, t, softmax(s), softmax(t)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    )
    total, count = DIVERGENCES.get(name)(student, teacher, **options)
    assert float(total) == pytest.approx(expected, rel=1e-10)
    assert count == 4


@pytest.mark.parametrize("name", [n for n in DIVERGENCES if n != "taid"])
def test_gradient_is_the_derivative_and_none_reaches_the_teacher(name):
    options, _ = FORMULAS[name]
    student, teacher = logits(2, 4, 1).requires_grad_(), logits(2, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: DIVERGENCES.get(name)(s, teacher.detach(), **options)[0], (student,))
    DIVERGENCES.get(name)(student, teacher, **options)[0].backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_taid_pulls_as_forward_kl_from_its_target_does():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    DIVERGENCES.get("taid")(student, teacher, progress=0.5, start=0.2)[0].backward()
    target = (0.4 * student.detach() + 0.6 * teacher).softmax(-1)
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - target)


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equal_logits_give_no_divergence_and_no_gradient(name):
    student = logits().requires_grad_()
    total, _ = DIVERGENCES.get(name)(student, logits())
    total.backward()
    entropy = -(logits().softmax(-1) * logits().log_softmax(-1)).sum() if name == "soft_cross_entropy" else 0.0
    assert float(total) == pytest.approx(float(entropy), abs=1e-12)
    assert student.grad.abs().max() < 1e-12
    assert DIVERGENCES.get(name)(logits(seed=1), logits())[0] > total


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_a_constant_added_to_a_row_changes_nothing(name):
    moved = logits(seed=1) + torch.tensor([[5.0], [-3.0], [100.0], [0.0]])
    plain = DIVERGENCES.get(name)(logits(seed=1), logits(seed=2))[0]
    torch.testing.assert_close(DIVERGENCES.get(name)(moved, logits(seed=2) - 7)[0], plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    student, teacher = (10 * logits(seed=s).to(dtype) for s in (1, 2))
    total, _ = DIVERGENCES.get(name)(student, teacher)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, DIVERGENCES.get(name)(student.float(), teacher.float())[0])


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_classes_that_are_impossible_for_both_count_nothing(name):
    if name in ("mse", "taid", "soft_cross_entropy"):
        pytest.skip("needs finite logits")
    student, teacher = logits(seed=1), logits(seed=2)
    expected = DIVERGENCES.get(name)(student[:, :5], teacher[:, :5])[0]
    student[:, 5] = teacher[:, 5] = -1e9
    torch.testing.assert_close(DIVERGENCES.get(name)(student, teacher)[0], expected)


def test_skewed_and_generalised_divergences_have_the_plain_ones_as_limits():
    student, teacher = logits(seed=1), logits(seed=2)
    forward, reverse = (DIVERGENCES.get(n)(student, teacher)[0] for n in ("forward_kl", "reverse_kl"))
    torch.testing.assert_close(DIVERGENCES.get("skewed_kl")(student, teacher, alpha=0.0)[0], forward)
    torch.testing.assert_close(DIVERGENCES.get("skewed_reverse_kl")(student, teacher, alpha=0.0)[0], reverse)
    jsd = DIVERGENCES.get("jsd")
    torch.testing.assert_close(jsd(student, teacher, beta=1e-6)[0] / 1e-6, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(student, teacher, beta=1 - 1e-6)[0] / 1e-6, reverse, rtol=1e-4, atol=0)
    torch.testing.assert_close(DIVERGENCES.get("taid")(student, teacher, progress=1.0)[0], forward)


def test_mse_is_the_limit_of_forward_kl_at_high_temperature():
    student, teacher = logits(seed=1), logits(seed=2)
    limit = 1e6 * forward_kl(student / 1e3, teacher / 1e3)[0]
    torch.testing.assert_close(limit, DIVERGENCES.get("mse")(student, teacher)[0], rtol=0.01, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_gradient_is_t_times_the_difference_of_softened_probabilities(temperature):
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    positions = torch.ones(2, dtype=torch.bool)
    divergence_term(forward_kl, student, teacher, positions, temperature)[0].backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    assert torch.allclose(student.grad, expected, atol=1e-5)


def test_only_marked_positions_count():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    positions = torch.tensor([[True, False, True], [False, False, True]])
    total, count = divergence_term(forward_kl, student, teacher, positions, 2.0)
    rows = [(0, 0), (0, 2), (1, 2)]
    expected = sum(4 * forward_kl(student[r][None] / 2, teacher[r][None] / 2)[0] for r in rows)
    assert count == 3
    assert torch.allclose(total, expected)


def test_a_vocabulary_that_was_padded_further_counts_in_its_shared_part():
    student, teacher = torch.randn(2, 5), torch.randn(2, 8)
    positions = torch.ones(2, dtype=torch.bool)
    expected = forward_kl(student, teacher[:, :5])[0]
    assert torch.allclose(divergence_term(forward_kl, student, teacher, positions, 1.0)[0], expected)


def test_no_position_at_all_gives_zero_with_a_gradient():
    student = torch.randn(2, 5, requires_grad=True)
    total, count = divergence_term(forward_kl, student, torch.randn(2, 5), torch.zeros(2, dtype=torch.bool), 1.0)
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("alignment", "batch", "expected"),
    [
        ("rows", {"input_ids": torch.ones(2, 3), "labels": torch.tensor([1, -100])}, [True, False]),
        ("rows", {"input_ids": torch.ones(2, 3)}, [True, True]),
        ("tokens", {"input_ids": torch.ones(1, 3), "labels": torch.tensor([[-100, 1, 2]])}, [[False, True, True]]),
        ("causal", {"input_ids": torch.ones(1, 3), "labels": torch.tensor([[-100, 1, 2]])}, [[True, True, False]]),
        (
            "causal",
            {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])},
            [[True, False, False]],
        ),
        (
            "tokens",
            {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])},
            [[True, True, False]],
        ),
    ],
)
def test_positions_follow_labels_padding_and_the_causal_shift(alignment, batch, expected):
    assert valid_positions(batch, alignment).tolist() == expected
