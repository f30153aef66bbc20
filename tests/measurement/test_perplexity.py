import math

import pytest
import torch
from architectures import build

from hf_compress.errors import DataError
from hf_compress.measurement.perplexity import perplexity


def naive(model, tokens, length, stride):
    """One token at a time, from the first window that holds it and something before it."""
    total, first, done = 0.0, 0, 1
    while done < len(tokens):
        last = min(first + length, len(tokens))
        for place in range(done, last):
            logits = model(input_ids=tokens[None, first:place]).logits[0, -1]
            total -= float(logits.log_softmax(-1)[tokens[place]])
        done, first = last, first + stride
    return math.exp(total / (len(tokens) - 1))


@pytest.mark.parametrize(
    ("length", "stride", "batch"), [(10, 9, 3), (10, 4, 2), (10, 1, 8), (30, 7, 8), (64, None, 1), (2, 1, 4)]
)
def test_every_token_but_the_first_is_predicted_once_from_its_window(length, stride, batch):
    model = build("llama").train()
    tokens = torch.randint(3, 60, (37,), generator=torch.Generator().manual_seed(0))
    found = perplexity(model, tokens, length=length, stride=stride, batch_size=batch)
    assert model.training
    with torch.no_grad():
        assert found["perplexity"] == pytest.approx(
            naive(model.eval(), tokens, length, stride or length - 1), rel=1e-4
        )
    assert found["loss"] == pytest.approx(math.log(found["perplexity"]))
    assert (found["tokens"], found["context"], found["stride"]) == (36, length, stride or length - 1)


@pytest.mark.parametrize(("tokens", "length", "stride"), [([1], 4, 1), ([1, 2], 1, 1), ([1, 2], 4, 0)])
def test_what_cannot_be_predicted_is_refused(tokens, length, stride):
    with pytest.raises(DataError, match="expected"):
        perplexity(build("llama"), torch.tensor(tokens), length=length, stride=stride)
