"""A tokenizer with fewer tokens that reads known text as before.

Level: state. The three kinds of sub-word models keep their own promise: WordPiece and Unigram find the pieces that are
left; BPE needs the parts of each merge that leads to a kept token, and with these applies the same merges.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hf_compress.errors import ArchitectureError


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """Return how often each token number occurs in `texts`."""
    found: Counter[int] = Counter()
    for text in texts:
        found.update(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    return found


def closed(tokenizer: Any, ids: Iterable[int]) -> set[int]:
    """Return `ids` with all that must stay beside them.

    These are special and added tokens, single characters and bytes, so that any text still has tokens, and with BPE
    the parts of which a token is merged.

    Raises:
        ArchitectureError: if the tokenizer has no file of the tokenizers library.
    """
    data = _data(tokenizer)
    model = data["model"]
    numbers = _numbers(model)
    kept = {i for i in ids if 0 <= i <= max(numbers.values(), default=-1)}
    kept |= {token["id"] for token in data["added_tokens"]} | set(tokenizer.all_special_ids)
    prefix = model.get("continuing_subword_prefix") or ""
    kept |= {n for token, n in numbers.items() if len(token.removeprefix(prefix).removeprefix("▁")) <= 1}
    kept |= {n for token, n in numbers.items() if len(token) == 6 and token.startswith("<0x")}
    unknown = model.get("unk_token")
    kept |= {numbers[unknown]} if unknown in numbers else set()
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    if model["type"] == "BPE":
        parts = {a + b.removeprefix(prefix): (a, b) for a, b in _merges(model)}
        names = {n: token for token, n in numbers.items()}
        waiting = list(kept)
        while waiting:
            for part in parts.get(names.get(waiting.pop(), ""), ()):
                if numbers[part] not in kept:
                    kept.add(numbers[part])
                    waiting.append(numbers[part])
    return kept


def cut_tokenizer(tokenizer: Any, new_ids: Mapping[int, int]) -> Any:
    """Return a tokenizer that has the tokens of `new_ids` only, with their new numbers.

    Args:
        tokenizer: a fast tokenizer; it is left as it is.
        new_ids: old number -> new number; closed.
    """
    from tokenizers import Tokenizer

    data = _data(tokenizer)
    model = data["model"]
    if model["type"] == "Unigram":
        rows = {new_ids[i]: row for i, row in enumerate(model["vocab"]) if i in new_ids}
        model["vocab"] = [rows[i] for i in sorted(rows)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {token: new_ids[i] for token, i in model["vocab"].items() if i in new_ids}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        left = set(model["vocab"])
        model["merges"] = [[a, b] for a, b in _merges(model) if {a, b, a + b.removeprefix(prefix)} <= left]
    data["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in data["added_tokens"]]
    _renumber(data.get("post_processor"), new_ids)
    if data.get("padding"):
        data["padding"]["pad_id"] = new_ids[data["padding"]["pad_id"]]
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(data))
    return smaller


def _renumber(part: Any, new_ids: Mapping[int, int]) -> None:
    """Change the numbers of special tokens inside a post-processor, in place."""
    if not isinstance(part, dict):
        return
    for inner in part.get("processors", ()):
        _renumber(inner, new_ids)
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            part[name] = [part[name][0], new_ids[part[name][1]]]
    for token in (part.get("special_tokens") or {}).values():
        token["ids"] = [new_ids[i] for i in token["ids"]]


def _data(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ArchitectureError(
            f"expected a tokenizer of the tokenizers library, found {type(tokenizer).__name__}; convert it, or keep "
            "the vocabulary"
        )
    data = json.loads(backend.to_str())
    if data["model"]["type"] not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        raise ArchitectureError(f"expected WordPiece, BPE, Unigram or WordLevel, found {data['model']['type']}")
    return data


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {row[0]: i for i, row in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
