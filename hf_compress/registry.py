"""Named strategies: a dict filled by a decorator that stands beside each function.

Level: base. Adding a criterion, loss, schedule, scheme or stage means writing one decorated function in one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hf_compress.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=Callable)


class Registry(Generic[T]):
    """A checked mapping from name to callable; `kind` names the family in messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a callable under `name` (lower case, unused)."""
        if name != name.lower() or name in self._entries:
            raise ConfigError(f"{self.kind} name {name!r} must be lower case and not yet taken")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the callable called `name`.

        Raises:
            ConfigError: listing what exists and the nearest name.
        """
        if name not in self._entries:
            raise ConfigError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}; there are: "
                f"{', '.join(sorted(self._entries))}"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
