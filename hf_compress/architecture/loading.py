"""What transformers raises at a config or weights from anywhere, as one error of ours.

Level: state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hf_compress.errors import HfCompressError


@contextlib.contextmanager
def refusing(kind: type[HfCompressError], what: str, advice: str = "save the model again") -> Iterator[None]:
    """Turn the failure to read a model into an error that says which model, and why.

    Args:
        kind: of the error.
        what: begins its message, e.g. "the folder x".
        advice: ends it.

    Raises:
        kind: for whatever a constructor or file reader raises at values that it does not expect.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    expected = (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError)
    try:
        yield
    except HfCompressError:
        raise
    except (*expected, StrictDataclassError, SafetensorError) as error:
        reason = str(error) or type(error).__name__
        raise kind(f"{what} cannot be loaded by transformers: {reason}; {advice}") from error
