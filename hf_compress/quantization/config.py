"""Options of post-training quantization.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options

SCHEMES = ("int8", "nf4", "fp4")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class QuantizationConfig(Options):
    """How bitsandbytes stores the weights of linear layers."""

    scheme: str = field(default="int8", metadata={"help": "int8 (LLM.int8()), nf4 or fp4"})
    skip_modules: tuple[str, ...] = field(
        default=(), metadata={"help": "names of modules left alone, besides the output head, which always is"}
    )
    double_quant: bool = field(default=True, metadata={"help": "4-bit only: quantize the block scales as well"})
    compute_dtype: str = field(
        default="float32", metadata={"help": "4-bit only: dtype of the multiplication: float32, bfloat16, float16"}
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if self.scheme not in SCHEMES:
            yield f"scheme must be one of {', '.join(SCHEMES)}, found {self.scheme!r}"
        if self.compute_dtype not in DTYPES:
            yield f"compute_dtype must be one of {', '.join(DTYPES)}, found {self.compute_dtype!r}"
