"""What the Hub knows of the model that another one was made from: licence, languages, revision.

Level: state. Asked once, when a card is written; a Hub that does not answer leaves the card without them.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from hf_compress.hub.config import CardInfo


def with_base_facts(info: CardInfo, token: str | None = None) -> CardInfo:
    """Return `info` with licence, languages and revision of its base model, where they were not given.

    Args:
        info: with or without a base model.
        token: of the Hub, for private base models.
    """
    if info.base_model is None or (info.license and info.base_model_revision and info.language):
        return info
    found = _ask(info.base_model, info.base_model_revision, token)
    if found is None:
        return info
    card: Any = getattr(found, "card_data", None) or {}
    license, language = card.get("license"), card.get("language")
    languages = (language,) if isinstance(language, str) else tuple(language or ())
    return dataclasses.replace(
        info,
        license=info.license or (license if isinstance(license, str) else None),
        language=info.language or languages,
        base_model_revision=info.base_model_revision or found.sha,
    )


def _ask(base_model: str, revision: str | None, token: str | None) -> Any:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import httpx

    if constants.HF_HUB_OFFLINE:
        return None
    # The client reads HF_ENDPOINT when it is imported; what is set now counts.
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token=token)
    try:
        return api.model_info(base_model, revision=revision, timeout=10)
    except (httpx.HTTPError, OSError, ValueError):
        return None
