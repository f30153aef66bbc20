"""Two repos that point to each other: a model, and the same model in few bits.

Level: outside.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_compress.errors import HubError
from hf_compress.hub.config import is_hub_id
from hf_compress.hub.push import PushResult, push


def push_pair(
    source: str | Path,
    quantized: str | Path,
    repo_id: str,
    quantized_repo_id: str | None = None,
    *,
    token: str | None = None,
    dry_run: bool = False,
    **options: Any,
) -> tuple[PushResult, PushResult]:
    """Push a model and its quantized copy to two repos; the cards of both name the other.

    Other formats are made from the 16- or 32-bit source, never from the copy, so both are there for readers. The
    links are written into both README.md before anything is sent; the copy's metadata name the source as its base.

    Args:
        source: folder of the plain model.
        quantized: folder of the copy.
        repo_id: "owner/name" of the source.
        quantized_repo_id: of the copy; by default that of the source with the name of the copy's folder behind it.
        token: of the Hub; None: the one logged in with.
        dry_run: only say what would be sent; the cards are left as they are.
        **options: fields of `PushOptions`, for both.

    Returns:
        What was sent of the source and of the copy.

    Raises:
        PushRefusedError: if a folder is no model or holds what must not leave this machine; nothing was sent of it.
        HubError: if an id has no owner, or the Hub does not agree; the source is sent first.
    """
    other = quantized_repo_id or f"{repo_id}-{Path(quantized).resolve().name}"
    for name in (repo_id, other):
        if "/" not in name or not is_hub_id(name):
            raise HubError(f"expected ids with their owner, such as 'owner/name', to link the two, found {name!r}")
    if not dry_run:
        _link(Path(source), f"Quantized: [{other}](https://huggingface.co/{other})")
        line = f"In 16 or 32 bit, for conversion to other formats: [{repo_id}](https://huggingface.co/{repo_id})"
        _link(Path(quantized), line, base_model=repo_id, base_model_relation="quantized")
    where: dict[str, Any] = {**options, "token": token, "dry_run": dry_run}
    return push(source, repo_id, **where), push(quantized, other, **where)


def _link(folder: Path, line: str, **metadata: str) -> None:
    """Add a line, and metadata, to the card of a folder, unless they are there."""
    from huggingface_hub import ModelCard

    target = folder / "README.md"
    try:
        card = ModelCard(target.read_text(encoding="utf-8"))
    except FileNotFoundError:
        card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {folder.resolve().name}\n")
    for key, value in metadata.items():
        setattr(card.data, key, value)
    text = str(card)
    if line not in text:
        text = text.rstrip("\n") + f"\n\n{line}\n"
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
