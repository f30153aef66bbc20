import math

import pytest
import torch

from hf_compress.distillation.losses import DIVERGENCES, forward_kl
from hf_compress.distillation.reduce import divergence_term, valid_positions


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_a_divergence_is_zero_for_equal_logits_and_positive_otherwise(name):
    logits, other = torch.randn(5, 7), torch.randn(5, 7)
    assert DIVERGENCES.get(name)(logits, logits)[0].abs() < 1e-6
    assert DIVERGENCES.get(name)(other, logits)[0] > 0


def test_forward_kl_equals_the_formula():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    expected = 0.0
    for s, t in zip(student.softmax(-1), teacher.softmax(-1), strict=True):
        expected += sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(t, s, strict=True))
    total, count = forward_kl(student, teacher)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert count == 3


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
