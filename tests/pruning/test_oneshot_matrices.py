"""Which weights of one matrix go without training, and what the others become."""

import pytest
import torch

from hf_compress.pruning.oneshot.obs import damped, inverse_root, refined, sparsegpt
from hf_compress.pruning.oneshot.scores import WEIGHT_CRITERIA, group_mask, row_mask


def inputs(samples=200, columns=12, seed=0):
    """Correlated, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    return torch.randn(samples, columns, generator=generator) @ mix * torch.rand(columns, generator=generator) * 3


def weights(rows=9, columns=12, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_wanda_and_ria_equal_their_equations():
    w, x = weights(), inputs()
    norms = x.norm(dim=0)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            size, norm = abs(float(w[i, j])), float(x[:, j].square().sum().sqrt())
            assert float(WEIGHT_CRITERIA.get("wanda")(w, norms)[i, j]) == pytest.approx(size * norm, rel=1e-5)
            relative = size / float(w[i].abs().sum()) + size / float(w[:, j].abs().sum())
            assert float(WEIGHT_CRITERIA.get("ria")(w, norms)[i, j]) == pytest.approx(relative * norm**0.5, rel=1e-5)


@pytest.mark.parametrize("prune", [0, 1, 40, 54, 108])
def test_rows_lose_as_many_also_among_equals(prune):
    scores = weights().mul(2).round()
    stays = row_mask(scores, prune)
    gone = (~stays).sum(1)
    assert int(gone.sum()) == prune
    assert int(gone.max() - gone.min()) <= 1
    for row, stay in zip(scores, stays, strict=True):
        if stay.any() and not stay.all():
            assert row[stay].min() >= row[~stay].max()


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 6), (3, 12)])
def test_groups_keep_their_best_by_brute_force(keep, of):
    scores = weights()
    stays = group_mask(scores, keep, of)
    for i in range(scores.shape[0]):
        for first in range(0, scores.shape[1], of):
            best = set(sorted(range(first, first + of), key=lambda j: -float(scores[i, j]))[:keep])
            assert {j for j in range(first, first + of) if stays[i, j]} == best


def naive(weight, hessian, prune, n_of_m=None):
    """Optimal brain surgeon, column by column, each time with the inverse for the columns that are left."""
    weight, hessian = weight.double().clone(), hessian.double()
    rows, columns = weight.shape
    left = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    cost = torch.stack([left[j][0, 0] for j in range(columns)])
    if n_of_m is None:
        order = (weight.square() / cost).flatten().argsort()
        gone = torch.zeros(rows * columns, dtype=torch.bool)
        gone[order[:prune]] = True
        gone = gone.view(rows, columns)
    else:
        gone = torch.zeros(rows, columns, dtype=torch.bool)
    for j in range(columns):
        if n_of_m is not None and j % n_of_m[1] == 0:
            part = slice(j, j + n_of_m[1])
            gone[:, part] = ~group_mask(weight[:, part].square() / cost[part], *n_of_m)
        for i in range(rows):
            if gone[i, j]:
                weight[i, j:] -= weight[i, j] / left[j][0, 0] * left[j][0]
                weight[i, j] = 0
    return weight


@pytest.mark.parametrize("n_of_m", [None, (2, 4), (1, 3)])
@pytest.mark.parametrize("columns", [12, 48])
def test_sparsegpt_equals_naive_brain_surgery(n_of_m, columns):
    x, w = inputs(columns=columns), weights(columns=columns)
    hessian = (x.T @ x).double()
    prune = round(w.numel() * (0.6 if n_of_m is None else 1 - n_of_m[0] / n_of_m[1]))
    found = sparsegpt(w.double(), hessian, prune=prune, n_of_m=n_of_m)
    expected = naive(w, damped(hessian, 0.01), prune, n_of_m)
    assert int((found == 0).sum()) == prune
    assert torch.equal(found == 0, expected == 0)
    assert torch.allclose(found, expected, atol=1e-8)


def test_sparsegpt_prunes_each_block_of_columns_alike_and_dead_inputs_first():
    x, w = inputs(columns=40), weights(columns=40)
    x[:, 7] = 0
    found = sparsegpt(w, x.T @ x, prune=181, block=8)
    assert bool((found[:, 7] == 0).all())
    by_block = (found == 0).view(9, 5, 8).sum(dim=(0, 2))
    assert int(by_block.sum()) == 181
    assert int(by_block.max() - by_block.min()) <= 1
    assert int((sparsegpt(w, torch.zeros(40, 40), prune=100) == 0).sum()) == 100


def test_the_root_is_that_of_the_inverse():
    x = inputs().double()
    hessian = damped(x.T @ x, 0.01)
    root = inverse_root(hessian)
    assert torch.equal(root, root.triu())
    assert torch.allclose(root.T @ root, torch.linalg.inv(hessian), atol=1e-10)


def loss(found, dense, x):
    return float(((found - dense) @ x.T).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_brain_surgery_loses_least_and_magnitude_most_on_correlated_inputs(seed):
    x, w = inputs(400, 32, seed), weights(16, 32, seed + 10)
    hessian, losses = x.T @ x, {}
    for name in ("magnitude", "wanda"):
        scores = WEIGHT_CRITERIA.get(name)(w, x.norm(dim=0))
        losses[name] = loss(w.masked_fill(~row_mask(scores, w.numel() // 2), 0), w, x)
    found = sparsegpt(w, hessian, prune=w.numel() // 2)
    losses["sparsegpt"] = loss(found, w, x)
    losses["refined"] = loss(refined(found, w, hessian, steps=20), w, x)
    assert losses["refined"] <= losses["sparsegpt"] <= losses["wanda"] <= losses["magnitude"]


def test_refined_weights_are_least_squares_on_their_support():
    x, w = inputs(columns=12).double(), weights().double()
    start = w.masked_fill(~row_mask(w.abs(), 54), 0)
    hessian = damped(x.T @ x, 0.01)
    found = refined(start, w, x.T @ x, steps=60)
    assert torch.equal(found == 0, start == 0)
    for row, dense in zip(found, w, strict=True):
        support = row.nonzero().flatten()
        exact = torch.linalg.solve(hessian[support][:, support], hessian[support] @ dense)
        assert torch.allclose(row[support], exact, atol=1e-6)
    assert torch.equal(refined(start, w, x.T @ x, steps=0), start)
