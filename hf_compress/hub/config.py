"""Where a push goes.

Level: base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options


@dataclass(frozen=True)
class PushOptions(Options):
    """What `push` takes besides the folder, the repo and the token."""

    private: bool | None = field(
        default=None,
        metadata={"help": "make a new repo private, and refuse a public one; none: the account's default"},
    )
    revision: str | None = field(default=None, metadata={"help": "an existing branch; none: main"})
    commit_message: str | None = field(default=None, metadata={"help": "title of the commit"})
    create_pr: bool = field(
        default=False, metadata={"help": "open a pull request with the commit instead of changing the branch"}
    )
    tag: str | None = field(default=None, metadata={"help": "name for the commit, such as v1; it must not exist yet"})

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid combination."""
        if self.create_pr and self.tag is not None:
            yield "give tag or create_pr: a pull request has no commit on a branch yet; tag it when it is merged"
