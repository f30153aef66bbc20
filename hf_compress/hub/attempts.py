"""Requests that the Hub's client sends once only, sent again where that can help, with a bound.

Level: outside. The client repeats uploads itself, but not making repos, checking cards, or the commit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

# Seconds before each further attempt; a longer Retry-After of the server counts, up to the last of these.
WAITS = (1.0, 2.0, 4.0, 8.0)
_LONGEST = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")


def attempt(call: Callable[[], T]) -> T:
    """Return what `call` returns; errors that pass are waited for, all others and the last one are raised."""
    from huggingface_hub.utils import httpx

    for wait in WAITS:
        try:
            return call()
        except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
            pause = _pause(error, wait)
            if pause is None:
                raise
        time.sleep(pause)
    return call()


def is_passing(error: BaseException) -> bool:
    """Say whether the same request may succeed later: an outage, too many requests, a broken connection."""
    from huggingface_hub.utils import HfHubHTTPError, httpx

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the upload of one file, wrapped by the client
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    # Neither is an address that no connection can be made to, for example for a typing error in it.
    lasting = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    # The client reads the answer to a card's check before its status: an HTML page of an outage is no JSON.
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError)) and not isinstance(error, lasting)


def _pause(error: BaseException, wait: float) -> float | None:
    from huggingface_hub.utils import HfHubHTTPError

    if not is_passing(error):
        return None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(max(wait, float(asked)), _LONGEST) if asked.isdigit() else wait
