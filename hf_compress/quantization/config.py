"""Options of quantization: after training, and learnt in training.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options

DTYPES = ("float32", "bfloat16", "float16")
STORAGE = ("uint8", "bfloat16", "float16", "float32")
RANGES = ("observed", "learned")
ACTIVATIONS = ("none", "dynamic", "observed")


@dataclass(frozen=True)
class QuantizationConfig(Options):
    """How the weights of linear layers are stored, and whether training gets used to it first."""

    scheme: str = field(
        default="int8",
        metadata={
            "help": "bitsandbytes: int8 (LLM.int8()), nf4, fp4; torchao: torchao-int8, torchao-int8-dynamic, "
            "torchao-int4; gptqmodel: gptq"
        },
    )
    skip_modules: tuple[str, ...] = field(
        default=(), metadata={"help": "names of modules left alone, besides the output head, which always is"}
    )
    double_quant: bool = field(default=True, metadata={"help": "nf4, fp4: quantize the block scales as well"})
    compute_dtype: str = field(
        default="float32", metadata={"help": "nf4, fp4: dtype of the multiplication: float32, bfloat16, float16"}
    )
    storage_dtype: str = field(
        default="uint8",
        metadata={"help": "nf4, fp4: dtype that the packed codes are stored in; that of the rest for FSDP"},
    )
    threshold: float = field(
        default=6.0,
        metadata={"help": "int8: inputs above it are multiplied in 16 bit; 0 turns that off, which is faster"},
    )
    group_size: int | None = field(
        default=32, metadata={"help": "torchao-int4, gptq: weights that share a scale; none: those of one output"}
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "what stays unquantized (embeddings, norms, heads) is stored in it; none: as it was"},
    )
    aware: bool = field(
        default=False, metadata={"help": "train with rounded weights (quantization-aware), in CompressionTrainer"}
    )
    ranges: str = field(
        default="observed",
        metadata={"help": "aware: weights are rounded up to their largest (observed), or to a learned share of it"},
    )
    activations: str = field(
        default="none",
        metadata={"help": "aware: round inputs to 8 bit too: none, dynamic (per token), observed (running range)"},
    )
    freeze: float = field(
        default=0.7, metadata={"help": "aware: learned shares and observed ranges stay from here on, 0-1 of training"}
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        names = {"compute_dtype": DTYPES, "storage_dtype": STORAGE, "ranges": RANGES, "activations": ACTIVATIONS}
        for name, known in names.items():
            if getattr(self, name) not in known:
                yield f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}"
        if self.dtype is not None and self.dtype not in DTYPES:
            yield f"dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}"
        if self.threshold < 0:
            yield f"threshold must be at least 0, found {self.threshold}"
        if self.group_size is not None and self.group_size < 1:
            yield f"group_size must be at least 1, or none for one scale per output, found {self.group_size}"
        if not 0 <= self.freeze <= 1:
            yield f"freeze is a fraction of training, 0 to 1, found {self.freeze}"
        if not self.aware and (self.ranges != "observed" or self.activations != "none"):
            yield "ranges and activations are for aware=True"
