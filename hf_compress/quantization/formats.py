"""Formats of other runtimes, and how transformers' exporters quantize for each.

Level: state. A new format is one decorated function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.registry import Registry

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format that transformers exports to.

    Args:
        settings: (kind of quantization or None, calibration batches) -> transformers' export config.
        packages: import names of what it needs without quantization.
        quantizations: kind -> import names of what that needs besides.
        tidy: what is done to the folder that was written.
    """

    settings: Callable[[str | None, Sequence[Batch]], Any]
    packages: tuple[str, ...]
    quantizations: Mapping[str, tuple[str, ...]]
    tidy: Callable[[Path], None] = lambda folder: None

    def __call__(self, quantization: str | None, batches: Sequence[Batch]) -> Any:
        """Return transformers' export config."""
        return self.settings(quantization, batches)


FORMATS: Registry[Format] = Registry("export format")

# What multiplies weights. Sums, norms and softmax stay in floating point, where 8 bits would cost most; so do
# embeddings: one range for all rows took MiniLM's outputs from 0.32 to 0.73 off.
_MULTIPLIES = ["MatMul", "Gemm", "Conv"]


def _onnx(quantization: str | None, batches: Sequence[Batch]) -> Any:
    from transformers.exporters import OnnxConfig
    from transformers.exporters.quantizers import (
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
        OnnxRuntimeStaticConfig,
    )

    if quantization is None:
        return OnnxConfig(dynamic=True)
    if quantization == "dynamic":
        # Embeddings are gathered from 8 bits too.
        return OnnxConfig(dynamic=True, quantizer=OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True)))
    # Products of activations with each other, as in attention, would be rounded twice and run slower.
    options: dict[str, Any] = {"MatMulConstBOnly": True}
    static = OnnxRuntimeStaticConfig(op_types_to_quantize=_MULTIPLIES, per_channel=True, extra_options=options)

    class Quantizer(OnnxRuntimeQuantizer):
        """Gives convolutions 7 bits: pairs of products of 8 overflow the 16 of processors without VNNI.

        A network of five lost 4.0 points of Fashion-MNIST there, with 7 bits 0.4. Products of matrices hardly overflow
        and lose more by 7 bits (MiniLM).
        """

        def quantize(self, model: Any, *args: Any) -> Any:
            weights = [n.inputs[1] for graph in model.graphs() for n in graph if n.op_type == "Conv"]
            options["TensorQuantOverrides"] = {
                w.name: [{"axis": 0, "reduce_range": True}] for w in weights if w.is_initializer()
            }
            return super().quantize(model, *args)

    return OnnxConfig(dynamic=True, quantizer=Quantizer(static, list(batches)))


def _forget_traces(folder: Path) -> None:
    """Remove where in the source each operation comes from: paths of this machine, and most of a small file."""
    import onnx

    for path in folder.glob("*.onnx"):
        # Weights lie in a file beside it, which stays.
        model = onnx.load(str(path), load_external_data=False)
        for part in (model, model.graph, *model.functions, *_nodes(model.graph), *_nodes(*model.functions)):
            del part.metadata_props[:]
            part.ClearField("doc_string")
        for described in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
            del described.metadata_props[:]
            described.ClearField("doc_string")
        # Not onnx.save, which would look for the weights.
        path.write_bytes(model.SerializeToString())


def _nodes(*graphs: Any) -> Iterator[Any]:
    """Yield the nodes of graphs, those of branches and loops too."""
    for graph in graphs:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from _nodes(*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _openvino(quantization: str | None, batches: Sequence[Batch]) -> Any:
    from transformers.exporters import OpenVINOConfig

    if quantization is None:
        return OpenVINOConfig(dynamic=True)
    from transformers.exporters.quantizers import (
        NNCFOpenVINOQuantizer,
        NNCFQuantizationConfig,
        NNCFWeightCompressionConfig,
    )

    if quantization == "dynamic":
        # The runtime rounds activations itself where weights have 8 bits.
        import nncf

        weights = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_SYM)
        return OpenVINOConfig(dynamic=True, quantizer=NNCFOpenVINOQuantizer(weights))
    # Without a size NNCF looks at the first 300 samples only.
    static = NNCFQuantizationConfig(subset_size=len(batches))
    return OpenVINOConfig(dynamic=True, quantizer=NNCFOpenVINOQuantizer(static, list(batches)))


def _executorch(quantization: str | None, batches: Sequence[Batch]) -> Any:
    from transformers.exporters import ExecutorchConfig

    if quantization is None:
        return ExecutorchConfig(dynamic=True)
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from transformers.exporters.quantizers import PT2EQuantizer

    settings = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=quantization == "dynamic")
    quantizer = PT2EQuantizer(XNNPACKQuantizer().set_global(settings), list(batches) or None)
    return ExecutorchConfig(dynamic=True, quantizer=quantizer)


_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMATS.register("onnx")(Format(_onnx, _ONNX_PACKAGES, {"dynamic": (), "static": ()}, _forget_traces))
FORMATS.register("openvino")(Format(_openvino, ("openvino",), {"dynamic": ("nncf",), "static": ("nncf",)}))
FORMATS.register("executorch")(Format(_executorch, ("executorch",), {"dynamic": ("torchao",), "static": ("torchao",)}))
