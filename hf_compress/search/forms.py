"""In which form a model may leave: plain, in few bits, or for another runtime.

Level: outside. A new form is one decorated function here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.errors import ConfigError
from hf_compress.imports import is_available, require
from hf_compress.registry import Registry

Write = Callable[[Any, Any, Path, Sequence[Mapping[str, Any]]], None]


@dataclass(frozen=True)
class Form:
    """One form.

    Args:
        write: what a call does.
        packages: that it needs.
        is_exported: whether every layer may have sizes of its own.
    """

    write: Write
    packages: tuple[str, ...] = ()
    is_exported: bool = False

    def __call__(self, model: Any, processor: Any, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
        """Write `model` to `folder`, which does not exist yet; `batches` show static quantization its ranges."""
        self.write(model, processor, folder, batches)


FORMS: Registry[Form] = Registry("form")


def usable_forms(names: Sequence[str]) -> dict[str, Form]:
    """Return the forms of some names, or of all whose packages are installed.

    Raises:
        ConfigError: if there is no such form, or none.
        MissingDependencyError: if a package of a named form is not installed.
    """
    for name in names:
        for package in FORMS.get(name).packages:
            require(package, f"the form {name!r}")
    every = {name: FORMS.get(name) for name in names or FORMS}
    found = {n: form for n, form in every.items() if all(map(is_available, form.packages))}
    if not found:
        raise ConfigError("there is no form to look at: install openvino or onnxruntime")
    return found


def _add(name: str, *packages: str, is_exported: bool = False) -> Callable[[Write], Write]:
    def add(write: Write) -> Write:
        FORMS.register(name)(Form(write, packages, is_exported))
        return write

    return add


@_add("float32")
def _float32(model: Any, processor: Any, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@_add("nf4", "bitsandbytes")
def _nf4(model: Any, processor: Any, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    from hf_compress.quantization.api import quantize
    from hf_compress.quantization.config import QuantizationConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as plain:
        _float32(model, processor, Path(plain), batches)
        quantize(plain, folder, QuantizationConfig("nf4"))


@_add("onnx-int8", "onnx", "onnxruntime", "onnxscript", is_exported=True)
def _onnx_int8(model: Any, processor: Any, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    from hf_compress.quantization.export import export

    export(model, "onnx", folder, quantization="dynamic", batches=batches[:2])
    processor.save_pretrained(folder)


@_add("openvino-int8", "openvino", "nncf", is_exported=True)
def _openvino_int8(model: Any, processor: Any, folder: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    from hf_compress.quantization.export import export

    export(model, "openvino", folder, quantization="static", batches=batches)
    processor.save_pretrained(folder)
