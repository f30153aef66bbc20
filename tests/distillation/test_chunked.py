"""The chunked head against the whole one: same loss, same gradients, whatever the chunk."""

import pytest
import torch
import torch.nn.functional as F

from hf_compress.distillation.chunked import after, by_autograd, chunked_head_loss
from hf_compress.distillation.formula import TermWeights, cross_entropy_and_kl
from hf_compress.distillation.losses import DIVERGENCES

ROWS, WIDTH, CLASSES = 13, 6, 20


def problem(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = made(ROWS, WIDTH).requires_grad_(), made(CLASSES, WIDTH).requires_grad_()
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    labels[::4] = -100
    return hidden, weight, made(CLASSES).requires_grad_() if bias else None, made(ROWS, CLASSES), labels


def loss_of(divergence, teacher, labels):
    def one(logits, rows):
        counted = labels[rows] != -100
        task = F.cross_entropy(
            logits.float() if logits.dtype != torch.float64 else logits, labels[rows], reduction="sum"
        )
        pull, _ = divergence(logits[counted], teacher[rows][counted])
        return 0.3 * task + 0.7 * pull, torch.stack([task.detach(), pull.detach()])

    return one


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equals_the_whole_head_for_every_divergence_and_chunk(name, chunk):
    hidden, weight, bias, teacher, labels = problem()
    one = loss_of(DIVERGENCES.get(name), teacher, labels)
    whole, parts = one(F.linear(hidden, weight, bias), slice(0, ROWS))
    expected = torch.autograd.grad(5 * whole, (hidden, weight, bias))
    total, beside = chunked_head_loss(hidden, weight, bias, by_autograd(one), chunk)
    found = torch.autograd.grad(5 * total, (hidden, weight, bias))
    torch.testing.assert_close(total.double(), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beside, parts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_and_no_bias_get_no_gradient():
    hidden, weight, _, teacher, labels = problem(bias=False)
    one = loss_of(DIVERGENCES.get("forward_kl"), teacher, labels)
    total, _ = chunked_head_loss(hidden, weight.detach(), None, by_autograd(one), 4)
    total.backward()
    assert hidden.grad.any()
    assert weight.grad is None


def test_rows_that_do_not_count_give_nothing():
    hidden, weight, bias, teacher, labels = problem()
    one = loss_of(DIVERGENCES.get("forward_kl"), teacher, torch.full_like(labels, -100))
    total, _ = chunked_head_loss(hidden, weight, bias, by_autograd(one), 4)
    total.backward()
    assert float(total.detach()) == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_half_precision_sums_the_head_in_float32():
    hidden, weight, bias, teacher, labels = problem(torch.bfloat16)
    one = loss_of(DIVERGENCES.get("forward_kl"), teacher, labels)
    total, _ = chunked_head_loss(hidden, weight, bias, by_autograd(one), 1)
    total.backward()
    assert weight.grad.dtype == torch.bfloat16
    wide = [t.detach().float().requires_grad_() for t in (hidden, weight, bias)]
    one(F.linear(*wide), slice(0, ROWS))[0].backward()
    for low, high in zip((hidden, weight, bias), wide, strict=True):
        assert (low.grad.float() - high.grad).norm() < 0.03 * high.grad.norm()


def test_without_gradients_it_is_the_loss_alone():
    hidden, weight, bias, teacher, labels = problem()
    one = loss_of(DIVERGENCES.get("jsd"), teacher, labels)
    with torch.no_grad():
        total, _ = chunked_head_loss(hidden, weight, bias, by_autograd(one), 4)
    assert not total.requires_grad
    torch.testing.assert_close(total.double(), one(F.linear(hidden, weight, bias), slice(0, ROWS))[0].detach())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("name", ["forward_kl", "soft_cross_entropy"])
def test_the_formula_of_cross_entropy_and_kl_is_their_gradient(temperature, smoothing, has_labels, name):
    generator = torch.Generator().manual_seed(0)
    logits, *teachers = (3 * torch.randn(5, 9, generator=generator) for _ in range(3))
    teachers[0][:, 4] = -torch.inf  # a class that this teacher rules out
    labels = torch.randint(9, (5,), generator=generator) if has_labels else None
    leaf = logits.clone().double().requires_grad_()
    task = (
        F.cross_entropy(leaf, labels, reduction="sum", label_smoothing=smoothing) if has_labels else 0.0 * leaf.sum()
    )
    pull = sum(
        share * temperature**2 * DIVERGENCES.get(name)(leaf / temperature, t.double() / temperature)[0]
        for share, t in zip((0.3, 0.7), teachers, strict=True)
    )
    expected = 0.4 * task + 0.6 * pull
    (slope,) = torch.autograd.grad(expected, leaf)
    loss, gradient, sums = cross_entropy_and_kl(
        logits,
        labels,
        zip((0.3, 0.7), teachers, strict=True),
        TermWeights(0.4, 0.6, temperature, smoothing, with_entropy=name == "soft_cross_entropy"),
    )
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(gradient, slope, **close)
    torch.testing.assert_close(torch.stack([loss, *sums]), torch.stack([expected, task, pull]).detach(), **close)


def test_equal_logits_of_the_formula_give_exactly_no_divergence():
    logits = 3 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    loss, gradient, _ = cross_entropy_and_kl(logits, None, [(1.0, logits.clone())], TermWeights(1.0, 1.0, 2.0))
    assert float(loss) == 0
    assert float(gradient.abs().max()) < 1e-6


def test_what_a_model_does_behind_its_head_is_differentiated_too():
    hidden, weight, bias, teacher, labels = problem()

    def cap(logits):
        return 5 * torch.tanh(logits / 5)

    one = loss_of(DIVERGENCES.get("forward_kl"), teacher, labels)
    expected = torch.autograd.grad(one(cap(F.linear(hidden, weight, bias)), slice(0, ROWS))[0], (hidden, weight, bias))
    total, _ = chunked_head_loss(hidden, weight, bias, after(cap, by_autograd(one)), 4)
    for a, b in zip(torch.autograd.grad(total, (hidden, weight, bias)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_second_backward_pass_is_refused():
    hidden, weight, bias, teacher, labels = problem()
    one = loss_of(DIVERGENCES.get("forward_kl"), teacher, labels)
    total, _ = chunked_head_loss(hidden, weight, bias, by_autograd(one), 4)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        total.backward()
