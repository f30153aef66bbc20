"""What a card says besides records, and where a push goes.

Level: base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_compress.options import Options

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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


@dataclass(frozen=True)
class CardInfo(Options):
    """What a card says beside the records; what is None or empty is left out of the card."""

    model_name: str = field(metadata={"help": "name of the model, the card's title"})
    repo_id: str | None = field(default=None, metadata={"help": "Hub id that the model will have"})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of what it was made from, never a path"})
    base_model_revision: str | None = field(default=None, metadata={"help": "commit of the base model"})
    license: str | None = field(default=None, metadata={"help": "the Hub's id of the license; copy the base's"})
    language: tuple[str, ...] = field(default=(), metadata={"help": "ISO codes"})
    datasets: tuple[str, ...] = field(default=(), metadata={"help": "Hub ids of the training data"})
    pipeline_tag: str | None = field(default=None, metadata={"help": "the Hub's task; none: from the architecture"})
    tags: tuple[str, ...] = field(default=(), metadata={"help": "tags besides hf_compress and the methods"})
    related: tuple[str, ...] = field(
        default=(), metadata={"help": "Hub ids of the same model in other forms, e.g. quantized or its source"}
    )
    recipe: str = field(default="", metadata={"help": "the recipe as YAML text"})
    limits: tuple[str, ...] = field(
        default=(), metadata={"help": "sentences on what the model should not be used for"}
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each invalid value."""
        if not self.model_name or "\n" in self.model_name:
            yield f"model_name must be one line, found {self.model_name!r}"
        for name in ("repo_id", "base_model"):
            value = getattr(self, name)
            if value is not None and not is_hub_id(value):
                yield f"{name} must be a Hub id such as 'user/model', not a path, found {value!r}"
        for name in ("datasets", "related"):
            for value in getattr(self, name):
                if not is_hub_id(value):
                    yield f"{name} must be Hub ids, not paths, found {value!r}"


def is_hub_id(value: str) -> bool:
    """Say whether `value` is an id such as "user/model" and no path of this machine."""
    return HUB_ID.fullmatch(value) is not None and not os.path.exists(value)
