import numpy
import pytest
import torch

from hf_compress.errors import RecordError
from hf_compress.measurement.quality import measure_quality


@pytest.mark.parametrize(
    ("metrics", "value", "unit"),
    [
        ({"accuracy": numpy.float32(0.5)}, 0.5, "fraction"),
        ({"matthews": torch.tensor(-0.25)}, -0.25, "fraction"),
        ({"loss": 0.5}, 0.5, "nats"),
        ({"bleu": 27.5}, 27.5, ""),
        ({"mse": 0.85}, 0.85, ""),
    ],
)
def test_metrics_become_plain_numbers_with_a_unit(metrics, value, unit):
    (found,) = measure_quality(torch.nn.Identity(), lambda model: metrics)
    assert (found.value, type(found.value), found.unit) == (value, float, unit)


@pytest.mark.parametrize(
    "metrics", [{}, None, 0.5, {"accuracy": "0.5"}, {"accuracy": [1]}, {"accuracy": float("inf")}]
)
def test_what_is_no_mapping_of_finite_numbers_is_refused(metrics):
    with pytest.raises(RecordError, match="accuracy|mapping"):
        measure_quality(torch.nn.Identity(), lambda model: metrics)
