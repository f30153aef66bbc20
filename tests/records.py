"""Three fixed records, as a recipe makes them: a teacher, a shrunk student, and that student in 4 bit."""

from __future__ import annotations

from hf_compress.measurement.record import Measurement, Record

ENVIRONMENT = {
    "processor": "Test CPU", "cores": 2, "threads": 2, "device": "cpu", "device_name": "Test CPU",
    "system": "Linux x86_64",
    "python": "3.11.7", "versions": {"torch": "2.13.0", "transformers": "5.23.0", "hf_compress": "0.1.0"},
}  # fmt: skip
DATASET = {"id": "digits", "revision": None, "split": "test", "samples": 360}


def speed(batch_size: int, latency_ms: float) -> list[Measurement]:
    conditions = {
        "batch_size": batch_size,
        "image": "8x8",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "warmup": 5,
    }
    samples = tuple(latency_ms * factor for factor in (0.9, 0.95, 1.0, 1.05, 1.1))
    return [
        Measurement("latency", latency_ms, "ms", conditions, samples),
        Measurement("throughput", batch_size * 1000 / latency_ms, "samples/s", conditions),
    ]


def record(name: str, role: str, accuracy: float, parameters: int, size: int, times: tuple, **method) -> Record:
    memory = {"batch_size": 1, "image": "8x8", "device": "cpu", "threads": 2}
    measurements = (
        Measurement("accuracy", accuracy, "fraction"),
        Measurement("parameters", parameters, "parameters"),
        Measurement("bytes_on_disk", size, "bytes"),
        *speed(1, times[0]),
        *speed(32, times[1]),
        Measurement("peak_memory", 3 * size, "bytes", memory),
    )
    method = {"architecture": "ViTForImageClassification", **method}
    return Record(name, role, measurements, ENVIRONMENT, DATASET, 0, "hf-compress run digits", method)


def three() -> list[Record]:
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
    return [
        record("teacher", "baseline", 355 / 360, 1_594_762, 6_390_000, (1.6, 4.0)),
        record("shrunk", "intermediate", 357 / 360, 274_186, 1_100_000, (0.478, 1.0), shrink={"layers": 2}),
        record(
            "quantized", "result", 356 / 360, 274_186, 208_000, (0.953, 1.3),
            shrink={"layers": 2}, quantization={"scheme": "nf4"}, quantization_config=quantization,
        ),
    ]  # fmt: skip
