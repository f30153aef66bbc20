"""Whether two tokenizers give the same numbers to the same tokens.

Level: state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_compress.errors import TeacherError


def vocabulary(processing_class: Any) -> dict[str, int] | None:
    """Return the tokens and their numbers; None if `processing_class` is no tokenizer and has none."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    get = getattr(tokenizer, "get_vocab", None)
    return dict(get()) if get is not None else None


def vocabulary_of_source(source: str | Path) -> dict[str, int] | None:
    """Return the vocabulary of the tokenizer saved beside a model; None if there is none."""
    from transformers import AutoTokenizer

    try:
        return vocabulary(AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError):  # an image model, or a folder with the weights alone
        return None


def fingerprint(tokens: Mapping[str, int] | None) -> str | None:
    """Return a hash of a vocabulary."""
    if tokens is None:
        return None
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()[:16]


def check_vocabularies(ours: Mapping[str, int] | None, theirs: Mapping[str, int] | None) -> None:
    """Make sure that tokens that both have are the same numbers; more tokens on one side do no harm.

    Raises:
        TeacherError: if they are not.
    """
    if ours is None or theirs is None:
        return
    few, many = sorted((ours, theirs), key=len)
    other = [token for token, number in few.items() if many.get(token) != number]
    if other:
        token = min(other, key=lambda t: few[t])
        raise TeacherError(
            f"the tokenizers of student and teacher differ in {len(other)} of {len(few)} tokens: {token!r} is "
            f"{ours.get(token)} for the student and {theirs.get(token)} for the teacher; their logits cannot be "
            "compared; take a teacher with the student's tokenizer"
        )
