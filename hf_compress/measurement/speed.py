"""How fast models are: latency and throughput, all models in turn so that their ratios are fair.

Level: state.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.modes import evaluating
from hf_compress.measurement.exported import ExportedModule
from hf_compress.measurement.inputs import describe_inputs, dummy_inputs, floating_dtype
from hf_compress.measurement.record import Measurement

Inputs = Mapping[str, torch.Tensor]

# A sample below this is dominated by the clock and the scheduler, so it becomes the mean of several passes.
_SHORTEST_SAMPLE_MS = 1.0
_MOST_SAMPLES = 200
_SETTLE_SECONDS = 0.02


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Callable[[nn.Module, int], Inputs] = dummy_inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    warmup: int = 5,
    rounds: int = 10,
    seconds: float = 2.0,
) -> dict[str, list[Measurement]]:
    """Time forward passes in eval mode, one sample of each model per round.

    On a shared machine speed drifts; models timed one after the other would be compared across that drift.

    Args:
        models: name -> model, on the device to measure.
        inputs: (model, batch size) -> keyword arguments of the forward pass.
        batch_sizes: examples per forward pass.
        warmup: untimed forward passes per model and batch size.
        rounds: samples per model and batch size, at least.
        seconds: sampling goes on until this many seconds per model and batch size (at most 200 samples).

    Returns:
        For each model and batch size the latency in ms (median, with all samples), the throughput in samples/s and,
        unless it is quantized, the multiply-accumulate operations that torch's own counter finds.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in models}
    with evaluating(*models.values()):
        for batch_size in batch_sizes:
            prepared = {name: (model, inputs(model, batch_size)) for name, model in models.items()}
            samples = _sample(prepared, warmup, rounds, seconds)
            for name, (model, batch) in prepared.items():
                conditions = _conditions(model, batch, batch_size, warmup)
                found[name] += _measurements(samples[name], batch_size, conditions) + _macs(model, batch, conditions)
    return found


def _sample(
    prepared: Mapping[str, tuple[nn.Module, Inputs]], warmup: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    passes = {name: _passes_per_sample(model, batch, warmup) for name, (model, batch) in prepared.items()}
    samples: dict[str, list[float]] = {name: [] for name in prepared}
    order = list(prepared)
    is_mixed = len({isinstance(model, ExportedModule) for model, _ in prepared.values()}) > 1
    start = time.perf_counter()
    done = 0
    while done < rounds or (done < _MOST_SAMPLES and time.perf_counter() - start < seconds * len(order)):
        for name in order:
            if is_mixed:
                # Threads of the runtime that ran before wait actively for a while, and would take the processor.
                time.sleep(_SETTLE_SECONDS)
                _time_ms(*prepared[name], 1)
            samples[name].append(_time_ms(*prepared[name], passes[name]))
        # Another model first each round: who runs after whom (whose weights are in the cache) evens out.
        order = order[1:] + order[:1]
        done += 1
    return samples


def _passes_per_sample(model: nn.Module, batch: Inputs, warmup: int) -> int:
    if warmup:
        _time_ms(model, batch, warmup)
    return max(1, round(_SHORTEST_SAMPLE_MS / max(_time_ms(model, batch, 1), 1e-3)))


@torch.inference_mode()
def _time_ms(model: nn.Module, batch: Inputs, passes: int) -> float:
    """Return the mean duration of `passes` forward passes in milliseconds."""
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(passes):
        model(**batch)
    _wait_for_device()
    return (time.perf_counter() - start) * 1000 / passes


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _conditions(model: nn.Module, batch: Inputs, batch_size: int, warmup: int) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        **describe_inputs(batch),
        "device": next(iter(batch.values())).device.type,
        "dtype": str(floating_dtype(model)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "warmup": warmup,
    }


def _measurements(samples: list[float], batch_size: int, conditions: dict[str, Any]) -> list[Measurement]:
    median = statistics.median(samples)
    return [
        Measurement("latency", median, "ms", conditions, tuple(samples)),
        Measurement("throughput", batch_size * 1000 / median, "samples/s", conditions),
    ]


@torch.no_grad()
def _macs(model: Any, batch: Inputs, conditions: dict[str, Any]) -> list[Measurement]:
    # Kernels of quantizers are unknown to the counter.
    if getattr(model, "is_quantized", False):
        return []
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(**batch)
    return [Measurement("macs", int(counter.get_total_flops()) // 2, "MACs", conditions)]
