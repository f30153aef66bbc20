"""What went wrong at the Hub, and what to do about it.

Level: outside.
"""

from __future__ import annotations

import json

LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass token=; it needs the right to write"
ADVICE = {
    400: "correct what the server says and push again",
    401: f"the token is missing, wrong or expired; {LOG_IN}",
    402: "the plan of this account does not allow it; see its billing page",
    403: "this token may not write there; make one with write rights for that owner, or use another name",
    404: "there is no such repo, or this token may not see it; check the name and the token",
    409: "something else changes the repo at this moment; push again",
    412: "the branch moved meanwhile; push again",
    413: "a file is larger than the server takes; save the model in smaller shards",
    429: "too many requests; wait some minutes and push again",
}
OUTAGE = "the server is out of order; push again later: what has arrived is not sent twice"
UNREACHABLE = "check the network, the proxy and HF_ENDPOINT, then push again: what has arrived is not sent twice"
NOT_A_HUB = "check that HF_ENDPOINT is a Hub and that no proxy answers in its place"


def explain(error: BaseException) -> str:
    """Return what went wrong and what to do about it."""
    from huggingface_hub.utils import HfHubHTTPError, RevisionNotFoundError, httpx

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the upload of one file, wrapped by the client
    said = " ".join(str(error).split())
    if isinstance(error, RevisionNotFoundError):
        return f"the branch is not there ({said}); create it first or leave revision away"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return (
            f"{ADVICE.get(status, OUTAGE if status >= 500 else 'see what the server says')} (status {status}: {said})"
        )
    if isinstance(error, httpx.RemoteProtocolError):
        return f"the connection broke before the answer, so a commit may have been made ({said}); {UNREACHABLE}"
    if isinstance(error, httpx.HTTPError):
        return f"the Hub cannot be reached ({said}); {UNREACHABLE}"
    if isinstance(error, json.JSONDecodeError):
        return f"the answer is no JSON, as in an outage or from a proxy ({said}); push again later, or {NOT_A_HUB}"
    if isinstance(error, (ValueError, KeyError)):
        return f"the Hub did not accept it ({said}); correct the README's metadata if it is named, else {NOT_A_HUB}"
    if isinstance(error, ConnectionError):
        return f"the Hub cannot be reached ({said}); {UNREACHABLE}"
    return f"{type(error).__name__}: {said}; leave the folder unchanged while it is pushed, and push again"
