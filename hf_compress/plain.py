"""Plain data: what may stand in an option, how it is shown in errors, and YAML that says one thing only.

Level: base. Files come from anywhere, so nothing in them may run code, grow without bound or be read in two ways.
"""

from __future__ import annotations

import functools
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

_MOST_ITEMS = 20_000
_DEEPEST = 100
_LARGEST_TEXT = 1 << 20
_LARGEST_INT = 2**63


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 4, 8, 8, 8
        self.maxstring = self.maxother = 200

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out more than 4300 digits.
        digits = int(math.log10(2) * value.bit_length())
        return repr(value) if digits < 40 else f"a whole number of about {digits} digits"


_SHORT = _Short()


def shown(value: Any) -> str:
    """Return `repr(value)`, cut short where it is long, for errors."""
    return _SHORT.repr(value)


def unplain(value: Any) -> str | None:
    """Say what in `value` is no plain data that JSON and YAML can hold and a computation can use; None if nothing is.

    Plain are text, booleans, none, finite numbers, whole ones below 2**63, and lists and mappings (by text) of these.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > _MOST_ITEMS or depth > _DEEPEST:
            return f"not more than {_MOST_ITEMS} values, nested {_DEEPEST} deep at most"
        if isinstance(item, Mapping):
            odd = [key for key in item if not isinstance(key, str)]
            if odd:
                return f"options by name, found the name {shown(odd[0])}"
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple)):
            waiting += [(part, depth + 1) for part in item]
        elif (problem := _unplain_scalar(item)) is not None:
            return problem
    return None


def _unplain_scalar(item: Any) -> str | None:
    if item is None or isinstance(item, bool):
        return None
    if isinstance(item, float):
        return None if math.isfinite(item) else f"a finite number, found {item}"
    if isinstance(item, int):
        return None if abs(item) < _LARGEST_INT else f"a number below 2**63, found {shown(item)}"
    if not isinstance(item, str):
        return f"plain data (text, numbers, true, false, lists, mappings), found {shown(item)}"
    has_surrogates = any("\ud800" <= c <= "\udfff" for c in item)
    return f"text that can be written as UTF-8, found {shown(item)}" if has_surrogates else None


def read_json(text: str | bytes) -> Any:
    """Return the plain data in JSON `text`; keys that come twice are refused.

    Raises:
        ValueError: if it does not parse.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {shown(next(n for n in names if names.count(n) > 1))} comes twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_yaml(text: str) -> Any:
    """Return the plain data in YAML `text`, with numbers as YAML 1.2 and people write them.

    YAML 1.1, which PyYAML reads, takes 2:4 for 124 (base 60) and 8e-5 for text. Tags that make other objects, keys
    that come twice, and aliases that contain themselves or multiply are refused.

    Raises:
        yaml.YAMLError: if it does not parse, or is larger than 1 MB.
    """
    import yaml

    if len(text) > _LARGEST_TEXT:
        raise yaml.YAMLError(f"expected at most {_LARGEST_TEXT} characters, found {len(text)}")
    return yaml.load(text, _loader())


def write_yaml(data: Any) -> str:
    """Return plain `data` as YAML that `read_yaml` reads back unchanged."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    # Text that only YAML 1.2 takes for a number, such as 8e-5, needs quotes too.
    _add_numbers(Dumper)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False)


def _add_numbers(kind: Any) -> None:
    digits = list("-+0123456789.")
    kind.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), digits)
    number = re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN)$"
    )
    kind.add_implicit_resolver("tag:yaml.org,2002:float", number, digits)


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Measures each node as it is composed, aliases as often as they are used."""

        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self._depth = 0
            self._sizes: dict[int, tuple[int, int]] = {}  # of a node: values in it, how deep they are nested

        def fetch_flow_collection_start(self, kind: Any) -> None:
            super().fetch_flow_collection_start(kind)
            # Scanning ahead in deep brackets takes the square of their number.
            if self.flow_level > _DEEPEST:
                raise yaml.scanner.ScannerError(None, None, f"nested deeper than {_DEEPEST}", self.get_mark())

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark = self.peek_event().start_mark
            is_alias = self.check_event(yaml.AliasEvent)
            self._depth += 1
            if self._depth > _DEEPEST:
                raise yaml.composer.ComposerError(None, None, f"nested deeper than {_DEEPEST}", mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            if is_alias and id(node) not in self._sizes:
                raise yaml.composer.ComposerError(None, None, "an alias that contains itself", mark)
            if not is_alias:
                self._sizes[id(node)] = size, depth = _size(node, self._sizes)
                if size > _MOST_ITEMS or depth > _DEEPEST:
                    raise yaml.composer.ComposerError(None, None, f"more than {_MOST_ITEMS} values", mark)
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    found = f"the key {shown(key.value)} comes twice"
                    raise yaml.composer.ComposerError(None, None, found, key.start_mark)
                seen.add((key.tag, str(key.value)))
            return node

    _restrict(Loader)
    return Loader


def _size(node: Any, sizes: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values `node` stands for, and how deep they are nested; its parts are in `sizes`."""
    pairs = node.value if isinstance(node.value, list) else []
    parts = [sizes[id(part)] for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
    return 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)


def _restrict(loader: Any) -> None:
    """Leave `loader` the tags of plain data, numbers of YAML 1.2, and errors of YAML alone."""
    import yaml

    safe = yaml.SafeLoader
    tag = "tag:yaml.org,2002:"
    replaced = {f"{tag}int", f"{tag}float", f"{tag}timestamp"}
    # Copied, since both tables belong to the parent class.
    loader.yaml_implicit_resolvers = {
        first: [(name, pattern) for name, pattern in entries if name not in replaced]
        for first, entries in safe.yaml_implicit_resolvers.items()
    }
    kept = {f"{tag}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")} | {None}
    loader.yaml_constructors = {name: make for name, make in safe.yaml_constructors.items() if name in kept}
    _add_numbers(loader)

    def scalar(convert: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def construct(self: Any, node: Any) -> Any:
            try:
                return convert(self, node)
            except (ValueError, TypeError, KeyError) as error:
                found = f"no value of {node.tag}: {shown(node.value)}"
                raise yaml.constructor.ConstructorError(None, None, found, node.start_mark) from error

        return construct

    loader.add_constructor(f"{tag}int", scalar(lambda self, node: int(self.construct_scalar(node))))
    loader.add_constructor(f"{tag}float", scalar(safe.construct_yaml_float))
    loader.add_constructor(f"{tag}bool", scalar(safe.construct_yaml_bool))
