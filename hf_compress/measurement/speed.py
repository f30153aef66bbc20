"""How fast models are: latency and throughput, all models in turn so that their ratios are fair.

Level: state.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.modes import outside_training
from hf_compress.measurement.busy import OtherLoad
from hf_compress.measurement.exported import ExportedModule
from hf_compress.measurement.inputs import describe_inputs, dummy_inputs, floating_dtype
from hf_compress.measurement.record import Measurement

Inputs = Mapping[str, torch.Tensor]

# A sample below this is dominated by the clock and the scheduler, so it becomes the mean of several passes.
_SHORTEST_SAMPLE_MS = 1.0
_MOST_SAMPLES = 200
_SETTLE_SECONDS = 0.02
# Between two blocks of samples: what else a machine does comes and goes in seconds.
_PAUSE_SECONDS = 1.0


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Callable[[nn.Module, int], Inputs] = dummy_inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    warmup: int = 5,
    rounds: int = 10,
    seconds: float = 2.0,
    blocks: int = 1,
) -> dict[str, list[Measurement]]:
    """Time forward passes in eval mode, one sample of each model per round.

    On a shared machine speed drifts; models timed one after the other would be compared across that drift. What drifts
    more slowly than a few seconds shows between blocks only: all batch sizes are gone through once a block.

    Args:
        models: name -> model, on the device to measure.
        inputs: (model, batch size) -> keyword arguments of the forward pass.
        batch_sizes: examples per forward pass.
        warmup: untimed forward passes per model and batch size.
        rounds: samples per model and batch size, at least.
        seconds: sampling goes on until this many seconds per model and batch size (at most 200 samples).
        blocks: equally many samples each, a second apart (less if `seconds` is less), at least 1.

    Returns:
        For each model and batch size the latency in ms (median, with all samples, block after block), the throughput
        in samples/s and, unless it is quantized, the multiply-accumulate operations that torch's own counter finds.
    """
    with outside_training(*models.values()):
        timers = {
            size: _Timer({name: (model, inputs(model, size)) for name, model in models.items()})
            for size in batch_sizes
        }
        for block in range(blocks):
            time.sleep(min(_PAUSE_SECONDS, seconds) if block else 0.0)
            for timer in timers.values():
                timer.sample(warmup, math.ceil(rounds / blocks), seconds / blocks, max(1, _MOST_SAMPLES // blocks))
        found: dict[str, list[Measurement]] = {name: [] for name in models}
        for size, timer in timers.items():
            for name, (model, batch) in timer.prepared.items():
                conditions = {**_conditions(model, batch, size, warmup), **timer.circumstances(blocks)}
                times = _measurements(timer.samples[name], size, conditions)
                found[name] += times + _macs(model, batch, _conditions(model, batch, size, warmup))
    return found


class _Timer:
    """Samples of models at one batch size; the first block says how many samples each block has."""

    def __init__(self, prepared: Mapping[str, tuple[nn.Module, Inputs]]) -> None:
        self.prepared = prepared
        self.samples: dict[str, list[float]] = {name: [] for name in prepared}
        self._load = OtherLoad()
        self._passes: dict[str, int] = {}
        self._rounds = 0

    def sample(self, warmup: int, rounds: int, seconds: float, most: int) -> None:
        """Take one block of samples: `rounds` of them at least, `most` unless that is less, in turn."""
        found = {name: _passes_per_sample(model, batch, warmup) for name, (model, batch) in self.prepared.items()}
        self._passes = self._passes or found
        order = list(self.prepared)
        is_mixed = len({isinstance(model, ExportedModule) for model, _ in self.prepared.values()}) > 1
        # Later blocks have as many samples as the first.
        least, most = (self._rounds, self._rounds) if self._rounds else (rounds, most)
        with self._load:
            start, done = time.perf_counter(), 0
            while done < least or (done < most and time.perf_counter() - start < seconds * len(order)):
                for name in order:
                    self.samples[name].append(self._one(name, is_mixed))
                # Another model first each round: who runs after whom (whose weights are in the cache) evens out.
                order = order[1:] + order[:1]
                done += 1
        self._rounds = done

    def _one(self, name: str, settles: bool) -> float:
        if settles:
            # Threads of the runtime that ran before wait actively for a while, and would take the processor.
            time.sleep(_SETTLE_SECONDS)
            _time_ms(*self.prepared[name], 1)
        return _time_ms(*self.prepared[name], self._passes[name])

    def circumstances(self, blocks: int) -> dict[str, Any]:
        """Return what else was the case while the samples were taken."""
        cores = self._load.cores
        return {"blocks": blocks, **({} if cores is None else {"other_load": round(cores, 2)})}


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
