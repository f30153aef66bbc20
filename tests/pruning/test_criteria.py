"""Each criterion against its equation, written as loops over plain numbers."""

import math

import pytest
import torch

from hf_compress.pruning.criteria import CRITERIA
from hf_compress.pruning.criterion import Moment, Place

STEPS = 4
generator = torch.Generator().manual_seed(0)
WEIGHTS = [torch.randn(3, 5, generator=generator) for _ in range(STEPS)]
GRADIENTS = [torch.randn(3, 5, generator=generator) for _ in range(STEPS)]


def learnt(name, weights=WEIGHTS, gradients=GRADIENTS, total=15, share=0.5, **options):
    criterion = CRITERIA.get(name)(**options)
    state = {kind: torch.zeros(weights[0].shape) for kind in criterion.running}
    for step, (weight, gradient) in enumerate(zip(weights, gradients, strict=True), 1):
        criterion.observe_(weight, gradient, state, Moment(step, share, total))
    return criterion.scores(weights[-1], state, Place())


def entrywise(equation):
    """Apply `equation` to the w and g of each entry over the steps, as lists of floats."""
    columns = zip(*[w.flatten().tolist() for w in WEIGHTS], strict=True)
    slopes = zip(*[g.flatten().tolist() for g in GRADIENTS], strict=True)
    return torch.tensor([equation(w, g) for w, g in zip(columns, slopes, strict=True)]).view(3, 5)


def taylor(w, g, decay=0.95):
    mean = 0.0
    for a, b in zip(w, g, strict=True):
        mean = decay * mean + (1 - decay) * abs(a * b)
    return mean


def platon(w, g, beta1=0.85, beta2=0.95):
    mean = spread = 0.0
    for a, b in zip(w, g, strict=True):
        importance = abs(a * b)
        mean = beta1 * mean + (1 - beta1) * importance
        spread = beta2 * spread + (1 - beta2) * abs(importance - mean)
    return mean * spread


def movement(w, g):
    return -sum(a * b for a, b in zip(w, g, strict=True))


def soft_movement(w, g, penalty=100.0, share=0.5, total=15, lr=1e-2):
    score = mean = square = 0.0
    for step, (a, b) in enumerate(zip(w, g, strict=True), 1):
        sigmoid = 1 / (1 + math.exp(-score))
        slope = a * b + share * penalty * sigmoid * (1 - sigmoid) / total
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        score -= lr * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return 1 / (1 + math.exp(-score))


@pytest.mark.parametrize("equation", [taylor, platon, movement, soft_movement])
def test_gradient_criteria_follow_their_equations(equation):
    torch.testing.assert_close(learnt(equation.__name__), entrywise(equation), rtol=1e-4, atol=1e-6)


def test_options_reach_the_equation():
    expected = entrywise(lambda w, g: platon(w, g, 0.5, 0.7))
    torch.testing.assert_close(learnt("platon", beta1=0.5, beta2=0.7), expected)


@pytest.mark.parametrize("name", ["taylor", "platon", "movement", "soft_movement"])
def test_low_precision_weights_and_gradients_are_taken_in_float32(name):
    low = [[t.bfloat16() for t in tensors] for tensors in (WEIGHTS, GRADIENTS)]
    assert learnt(name, *low).dtype == torch.float32
    torch.testing.assert_close(learnt(name, *low), learnt(name), rtol=0.1, atol=0.05)


def test_soft_movement_follows_the_gradient_of_its_loss():
    """With respect to the scores, that of the masked forward pass and of the penalty, by autograd."""
    score = torch.zeros(3, 5, requires_grad=True)
    through = WEIGHTS[0] * (1 + score - score.detach())
    ((through * GRADIENTS[0]).sum() + 0.5 * 100.0 * score.sigmoid().mean()).backward()
    torch.optim.Adam([score], lr=1e-2).step()
    torch.testing.assert_close(learnt("soft_movement", WEIGHTS[:1], GRADIENTS[:1]), score.detach().sigmoid())


def test_lamp_divides_by_the_squares_that_are_not_smaller():
    weight = WEIGHTS[0].clone()
    weight[0, :3] = 0
    squares = sorted((float(v) ** 2, i) for i, v in enumerate(weight.flatten()))
    expected = torch.zeros(15)
    for rank, (square, i) in enumerate(squares):
        below = sum(s for s, _ in squares[rank:])
        expected[i] = square / below
    torch.testing.assert_close(CRITERIA.get("lamp")().scores(weight, {}, Place()), expected.view(3, 5))
    assert not CRITERIA.get("lamp")().scores(torch.zeros(4), {}, Place()).isnan().any()


def test_magnitude_and_thresholds_are_absolute_values_and_where_they_cut():
    weight = torch.tensor([[0.0, -3.0], [1.0, 2.0]])
    for name in ("magnitude", "threshold", "relative_threshold"):
        assert torch.equal(CRITERIA.get(name)().scores(weight, {}, Place()), weight.abs())
    assert CRITERIA.get("threshold")(threshold=0.4).cut(weight.abs(), share=0.5) == 0.2
    # The mean of what is left, 2, times 0.6, at half of the way.
    assert float(CRITERIA.get("relative_threshold")(threshold=0.6).cut(weight.abs(), 0.5)) == pytest.approx(0.6)


def test_random_is_even_repeatable_and_the_same_on_parts():
    random = CRITERIA.get("random")(seed=3)
    weight = torch.empty(300, 100)
    whole = random.scores(weight, {}, Place(index=2))
    assert torch.equal(whole, random.scores(weight, {}, Place(index=2)))
    assert torch.equal(whole[100:], random.scores(weight[100:], {}, Place(index=2, first=100 * 100)))
    tenths = torch.histc(whole, 10, 0, 1)
    assert tenths.sum() == whole.numel()
    assert tenths.min() > 2700
    assert tenths.max() < 3300
    for other in (
        CRITERIA.get("random")(seed=4).scores(weight, {}, Place(index=2)),
        random.scores(weight, {}, Place(3)),
    ):
        assert abs(float(torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1])) < 0.03


def test_every_criterion_is_tested_here():
    tested = {"taylor", "platon", "movement", "soft_movement", "lamp", "magnitude", "threshold", "relative_threshold"}
    assert set(CRITERIA) == tested | {"random", "keep"}
