"""How good a model is, by the metrics of its task.

Level: state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from hf_compress.errors import RecordError
from hf_compress.measurement.record import Measurement

Evaluate = Callable[[nn.Module], Mapping[str, float]]

# Metrics that are no fractions; their unit is stated so that 12.3 is not shown as 1230 %.
_UNITS = {"loss": "nats", "perplexity": "perplexity", "mse": "", "rmse": "", "mae": ""}


def measure_quality(model: nn.Module, evaluate: Evaluate, units: Mapping[str, str] | None = None) -> list[Measurement]:
    """Evaluate a model.

    Args:
        model: in eval mode.
        evaluate: the task's metrics by name, for example {"accuracy": 0.98}.
        units: metric name -> unit; without one it is "fraction" for numbers from -1 to 1 (loss: nats), else none.

    Raises:
        RecordError: if there is no metric, or one is not a finite number.
    """
    metrics = evaluate(model)
    if not isinstance(metrics, Mapping) or not metrics:
        raise RecordError(f"evaluate must return a mapping of metric names to numbers, found {metrics!r}")
    units = {**_UNITS, **(units or {})}
    numbers = {name: _number(name, value) for name, value in metrics.items()}
    # 27.3 BLEU are not 2730 %.
    return [Measurement(n, v, units.get(n, "fraction" if abs(v) <= 1 else "")) for n, v in numbers.items()]


def _number(name: str, value: object) -> float:
    if isinstance(value, str):
        raise RecordError(f"metric {name!r} must be a number, found the text {value!r}")
    try:
        # Scalars of numpy and torch become plain numbers; Measurement refuses those that are not finite.
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise RecordError(f"metric {name!r} must be a number, found {value!r}") from error
