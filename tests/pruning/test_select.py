import pytest
import torch

from hf_compress.pruning.select import keep_largest


def naive_keep(scores, prune):
    """Sort all entries by (score, position) and drop the first `prune`."""
    flat = [(float(v), i) for i, v in enumerate(torch.cat([s.flatten() for s in scores]))]
    gone = {i for _, i in sorted(flat)[:prune]}
    return torch.tensor([i not in gone for i in range(len(flat))])


@pytest.mark.parametrize("prune", [0, 1, 7, 23, 24])
@pytest.mark.parametrize(
    "scores",
    [
        [torch.rand(3, 4), torch.rand(12)],
        [torch.ones(3, 4), torch.ones(12)],
        [torch.tensor([0.0, 1, 1, 1, 2, 2]).repeat(2), torch.full((12,), 1.0)],
        [torch.full((12,), -torch.inf), torch.arange(12.0)],
    ],
    ids=["distinct", "all-tied", "some-tied", "minus-infinity"],
)
def test_equals_a_naive_sort_and_prunes_exactly_as_many_as_asked(scores, prune):
    keep = keep_largest(scores, prune)
    assert torch.equal(torch.cat([k.flatten() for k in keep]), naive_keep(scores, prune))
    assert [k.shape for k in keep] == [s.shape for s in scores]


@pytest.mark.parametrize("prune", [1, 2, 3])
@pytest.mark.parametrize("scores", [[1.0, torch.nan, 2.0], [torch.nan] * 3, [1.0, 1.0, torch.nan]])
def test_nan_scores_are_refused(scores, prune):
    with pytest.raises(ValueError, match="NaN"):
        keep_largest([torch.tensor(scores)], prune)


def test_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="between 0 and the number of scores"):
        keep_largest([torch.ones(3)], 4)
