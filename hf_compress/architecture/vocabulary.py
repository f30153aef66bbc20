"""`shrink_vocabulary`: a model and its tokenizer with the tokens that a corpus needs.

Level: state. The input is never changed; the smaller model is compared with the full one on renumbered inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from hf_compress.architecture.anatomy import Axis, probe
from hf_compress.architecture.cut import cut_units
from hf_compress.architecture.tokenizer import closed, count_tokens, cut_tokenizer
from hf_compress.architecture.units import UnitGroup
from hf_compress.architecture.verify import outputs
from hf_compress.errors import ArchitectureError

# Fields of configs that hold token numbers and do not end in token_id.
_MORE_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")
_TOLERANCE = 1e-4


class SmallerVocabulary(NamedTuple):
    """What `shrink_vocabulary` returns.

    Args:
        model: with fewer embeddings.
        tokenizer: with fewer tokens; save both into one folder.
        kept: the old number of each new token, ascending.
    """

    model: Any
    tokenizer: Any
    kept: list[int]


def shrink_vocabulary(
    model: Any, tokenizer: Any, texts: Iterable[str], *, size: int | None = None, verify: bool = True
) -> SmallerVocabulary:
    """Return the model and the tokenizer with the tokens that occur in `texts`.

    Known text is read as before, and so gives the same outputs. What else there is is made of shorter pieces, single
    characters or bytes, or is unknown, as with any tokenizer of that size.

    Args:
        model: a plain transformers model; it is left as it is.
        tokenizer: its tokenizer, of the tokenizers library; it is left as it is.
        texts: a corpus of the kind that the model will see.
        size: at most so many tokens, the most frequent; special tokens, single characters and, with BPE, the parts of
            merges stay beside them. None: all that occur.
        verify: compare the outputs for some of the kept tokens with those of the full model.

    Raises:
        ArchitectureError: if the config has no field for the vocabulary, the tokenizer is of another kind, or outputs
            differ.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ArchitectureError(f"size must be a whole number of at least 1, found {size!r}")
    axis = _axis(model)
    counts = count_tokens(tokenizer, texts)
    if not counts:
        raise ArchitectureError("texts has no token; give the kind of text that the model will see")
    frequent = sorted(counts, key=lambda i: (-counts[i], i))[:size]
    kept = sorted(i for i in closed(tokenizer, frequent) | set(_named_ids(model)) if i < axis.size)
    new_ids = {old: new for new, old in enumerate(kept)}
    group = UnitGroup(0, "vocabulary", axis.size, axis.slices, axis.field)
    # The config that the smaller model is built with names tokens by their new numbers: one of them may be padding.
    fields = {
        f"{path}{name}": _renumbered(value, new_ids)
        for path, config in _configs(model.config)
        for name, value in _fields(config)
    }
    smaller = cut_units(model, {group: torch.tensor(kept)}, {**fields, axis.field: len(kept)})
    generation = getattr(smaller, "generation_config", None)
    for name, value in list(_fields(generation)):
        setattr(generation, name, _renumbered(value, new_ids))
    if verify:
        _check(model, smaller, kept)
    return SmallerVocabulary(smaller, cut_tokenizer(tokenizer, new_ids), kept)


def _axis(model: Any) -> Axis:
    axes = probe(model).named("vocabulary")
    if len(axes) != 1:
        raise ArchitectureError(
            f"expected one config field for the vocabulary of {type(model).__name__}, found {len(axes)}; see "
            "inspect_model(model)"
        )
    return axes[0]


def _configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and those of its parts, each with what stands before its fields."""
    yield path, config
    for name, value in vars(config).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _configs(value, f"{path}{name}.")


def _fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields that name tokens; none of what is no config."""
    for name, value in vars(config).items() if config is not None else ():
        if value is not None and (re.search(r"token_ids?$", name) or name in _MORE_IDS):
            yield name, value


def _named_ids(model: Any) -> Iterator[int]:
    for config in [*(c for _, c in _configs(model.config)), getattr(model, "generation_config", None)]:
        for _, value in _fields(config):
            yield from _flat(value)


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _flat(inner)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value


def _renumbered(value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_renumbered(inner, new_ids) for inner in value)
    return new_ids.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check(model: Any, smaller: Any, kept: list[int]) -> None:
    """Compare what both say of some kept tokens.

    Raises:
        ArchitectureError: if it differs by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    new = torch.randint(len(kept), (1, min(12, len(kept))), generator=generator)
    both = []
    for each, ids in ((model, torch.tensor(kept)[new]), (smaller, new)):
        ids = ids.to(next(model.parameters()).device)
        both.append(outputs(each, {"input_ids": ids} | ({"decoder_input_ids": ids} if _has_decoder(model) else {})))
    for name, expected in both[0].items():
        found = both[1][name]
        if expected.shape != found.shape:
            expected = expected[..., torch.tensor(kept, device=expected.device)]
        error, scale = float((expected - found).abs().max()), float(expected.abs().max())
        if not error <= _TOLERANCE * max(scale, 1e-6):
            raise ArchitectureError(
                f"expected the smaller {type(model).__name__} to give the outputs of the full one, found {name} "
                f"different by {error:.2e} at a scale of {scale:.2e}; this architecture uses its vocabulary elsewhere "
                "too: keep it"
            )


def _has_decoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))
