"""The verbs of `hf-compress` that store a model in few bits or for another runtime.

Level: outside.
"""

from __future__ import annotations

import argparse
from typing import Any

from hf_compress.errors import DataError
from hf_compress.options import read_text
from hf_compress.quantization.config import DTYPES, STORAGE, QuantizationConfig

_DEFAULT = QuantizationConfig()


def add_quantize(verbs: Any, add_verb: Any) -> None:
    """Add `quantize`."""
    parser = add_verb(verbs, "quantize", "quantize a saved model to a folder that transformers loads", _quantize)
    parser.add_argument("source", help="folder of a plain model; it stays as it is")
    parser.add_argument("output", help="folder to make")
    parser.add_argument(
        "--scheme",
        default="int8",
        help="int8 (default), nf4, fp4; torchao-int8, torchao-int8-dynamic, torchao-int4; gptq",
    )
    parser.add_argument("--skip-modules", nargs="+", default=[], metavar="NAME", help="modules left alone")
    parser.add_argument("--no-double-quant", action="store_true", help="nf4, fp4: keep block scales in 32 bit")
    parser.add_argument("--compute-dtype", choices=DTYPES, default="float32", help="nf4, fp4: default float32")
    parser.add_argument("--storage-dtype", choices=STORAGE, default="uint8", help="nf4, fp4: default uint8")
    parser.add_argument("--threshold", type=float, default=_DEFAULT.threshold, help="int8: of outliers; default 6.0")
    parser.add_argument("--group-size", type=int, default=_DEFAULT.group_size, help="torchao-int4, gptq: default 32")
    parser.add_argument("--dtype", choices=DTYPES, help="of what stays unquantized (default: as it is)")
    _add_samples(parser, "gptq")


def _quantize(arguments: argparse.Namespace) -> None:
    config = QuantizationConfig(
        scheme=arguments.scheme,
        skip_modules=tuple(arguments.skip_modules),
        double_quant=not arguments.no_double_quant,
        compute_dtype=arguments.compute_dtype,
        storage_dtype=arguments.storage_dtype,
        threshold=arguments.threshold,
        group_size=arguments.group_size,
        dtype=arguments.dtype,
    )
    from hf_compress.quantization.api import quantize

    print(quantize(arguments.source, arguments.output, config, _batches(arguments, joined=True)))


def add_export(verbs: Any, add_verb: Any) -> None:
    """Add `export`."""
    parser = add_verb(verbs, "export", "write a saved model for ONNX Runtime, OpenVINO or ExecuTorch", _export)
    parser.add_argument("source", help="folder of a plain model; it stays as it is")
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--format", default="openvino", help="openvino (default), onnx, executorch")
    parser.add_argument("--quantization", help="dynamic or static: 8 bit (default: none)")
    parser.add_argument("--tolerance", type=float, help="largest relative distance of the outputs")
    _add_samples(parser, "static")


def _export(arguments: argparse.Namespace) -> None:
    from hf_compress.quantization.export import export

    options = {"quantization": arguments.quantization, "tolerance": arguments.tolerance}
    batches = _batches(arguments, joined=False)
    print(export(arguments.source, arguments.format, arguments.output, batches=batches, **options))


def _add_samples(parser: argparse.ArgumentParser, who: str) -> None:
    parser.add_argument("--text", help=f"{who}: a text file that is like what the model is used on, a sample a line")
    parser.add_argument("--samples", type=int, default=128, help=f"{who}: how many; default 128")
    parser.add_argument("--length", type=int, default=128, help=f"{who}: tokens of each, at most; default 128")
    parser.add_argument("--seed", type=int, default=0, help=f"{who}: of the draw; default 0")


def _batches(arguments: argparse.Namespace, joined: bool) -> list[Any]:
    """Read `--text`: joined and cut into rows of one length, or line by line."""
    if arguments.text is None:
        return []
    text = read_text(arguments.text)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.source, trust_remote_code=False)
    if joined:
        from hf_compress.pruning.oneshot.calibration import calibration_batches

        sizes = {"samples": arguments.samples, "length": arguments.length, "seed": arguments.seed}
        return list(calibration_batches(text, tokenizer, batch_size=1, **sizes))
    import random

    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{arguments.text} holds no text")
    chosen = random.Random(arguments.seed).sample(lines, min(arguments.samples, len(lines)))
    sizes = {"padding": True, "truncation": True, "max_length": arguments.length, "return_tensors": "pt"}
    return [dict(tokenizer(chosen[i : i + 8], **sizes)) for i in range(0, len(chosen), 8)]
