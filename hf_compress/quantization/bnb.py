"""Quantize a saved model with bitsandbytes: from a folder to a folder, checked by loading it back.

Level: state. The only user of bitsandbytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_compress.architecture.heads import head_modules
from hf_compress.errors import OutputExistsError, QuantizationError
from hf_compress.imports import require
from hf_compress.measurement import load
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.quantization.config import QuantizationConfig

# What else makes a model folder usable: tokenizers, processors, generation settings, licences.
_COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template*",
    "LICENSE*",
)  # fmt: skip
# Equal weights give equal logits; what remains is the order of float additions.
_RELOAD_TOLERANCE = 1e-4


def quantize(source: str | Path, output: str | Path, config: QuantizationConfig | None = None) -> Path:
    """Write a quantized copy of the model folder `source` to `output`, which loads with stock `from_pretrained`.

    Linear layers are quantized, the output head and `config.skip_modules` are left alone. The copy is saved before
    its first forward pass and loaded back: both must give the same logits. Runs on CUDA where there is one, else
    on the CPU.

    Args:
        source: folder of a plain model.
        output: folder to make; it must not exist or be empty.
        config: scheme and options; LLM.int8() if not given.

    Returns:
        `output`.

    Raises:
        OutputExistsError: if `output` already holds something.
        ConfigError: if `source` is no saved model.
        QuantizationError: if the model is quantized already, has no linear layer to quantize, or loads back
            differently. Nothing is written then.
    """
    require("bitsandbytes", "quantization to 8 and 4 bit")
    config = config or QuantizationConfig()
    source, output = Path(source), Path(output)
    model_class = load.model_class(source)
    if load.is_quantized(source):
        raise QuantizationError(f"{source.name} is quantized already; start from its 16- or 32-bit source")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExistsError(f"{output} already holds something; remove it or choose another place")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        part = Path(scratch) / output.name
        model = _load_quantized(model_class, source, config)
        if not list(quantized_modules(model)):
            raise QuantizationError(
                f"{type(model).__name__} has no linear layer to quantize besides its output head and the skipped "
                f"modules ({', '.join(config.skip_modules) or 'none'})"
            )
        # bitsandbytes repacks 4-bit weights for the CPU at the first forward pass and saves them wrongly after it.
        model.save_pretrained(part)
        _check_reload(model, model_class, part)
        _copy_companions(source, part)
        os.replace(part, output)
    return output


def quantized_modules(model: nn.Module) -> Iterator[str]:
    """Yield the names of the modules whose weights bitsandbytes holds."""
    import bitsandbytes as bnb

    for name, module in model.named_modules():
        if isinstance(module, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)):
            yield name


def bitsandbytes_config(config: QuantizationConfig, skip_modules: list[str]) -> Any:
    """Translate to transformers' `BitsAndBytesConfig`; the dtype of what stays unquantized is the source's."""
    from transformers import BitsAndBytesConfig

    if config.scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.scheme,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, config.compute_dtype),
        llm_int8_skip_modules=skip_modules,
    )


def _load_quantized(model_class: Any, source: Path, config: QuantizationConfig) -> Any:
    from transformers import AutoConfig

    with torch.device("meta"):
        skeleton = model_class(AutoConfig.from_pretrained(source, trust_remote_code=False))
    known = {name for name, _ in skeleton.named_modules()}
    unknown = [m for m in config.skip_modules if not any(n == m or n.endswith(m) or n.startswith(m) for n in known)]
    if unknown:
        raise QuantizationError(f"skip_modules matches no module: {', '.join(unknown)}")
    skip = [*head_modules(skeleton), *config.skip_modules]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model_class.from_pretrained(
        source, quantization_config=bitsandbytes_config(config, skip), device_map={"": device}
    ).eval()


@torch.inference_mode()
def _check_reload(model: Any, model_class: Any, folder: Path) -> None:
    inputs = dummy_inputs(model, batch_size=2)
    expected = model(**inputs)[0].float()
    found = model_class.from_pretrained(folder, device_map={"": model.device}).eval()(**inputs)[0].float()
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= _RELOAD_TOLERANCE:
        raise QuantizationError(
            f"the saved model gives other outputs than the quantized one in memory (relative difference "
            f"{difference:.2g}, at most {_RELOAD_TOLERANCE:g} expected); nothing was written. Try double_quant=True "
            "or another version of bitsandbytes"
        )


def _copy_companions(source: Path, target: Path) -> None:
    for pattern in _COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file() and not path.name.endswith(".safetensors"):
                shutil.copy2(path, target / path.name)
