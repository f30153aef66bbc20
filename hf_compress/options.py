"""What every config shares: frozen, all problems reported at once, plain dicts in and out.

Level: base. A config is a frozen dataclass that inherits `Options` and yields its problems from `problems()`.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hf_compress.errors import ConfigError, DataError, did_you_mean
from hf_compress.plain import read_json, read_yaml, shown, unplain, write_yaml

SelfOptions = TypeVar("SelfOptions", bound="Options")


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of all configs: validation at construction and conversion to and from plain data."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # JSON and YAML have lists, frozen configs have tuples.
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        problems = list(self._type_problems())
        # Range checks assume the right types, so they run only when the types are right.
        problems = problems or list(self.problems())
        if problems:
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(problems))

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each value that is out of range or contradicts another."""
        return iter(())

    def _type_problems(self) -> Iterator[str]:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _matches(value, hints[field.name]):
                yield f"{field.name} must be {_describe(hints[field.name])}, found {shown(value)}"
            elif not isinstance(value, Options) and (problem := unplain(_without_options(value))) is not None:
                yield f"{field.name} must be {problem}"

    def to_dict(self, *, defaults: bool = True) -> dict[str, Any]:
        """Return the options as nested plain data (dicts, lists, numbers, strings).

        Args:
            defaults: False leaves out what has its default value, which reads better and means the same.
        """
        shown = [f for f in dataclasses.fields(self) if defaults or getattr(self, f.name) != _default(f)]
        return {f.name: _plain(getattr(self, f.name), defaults) for f in shown}

    @classmethod
    def from_dict(cls: type[SelfOptions], data: Mapping[str, Any]) -> SelfOptions:
        """Build from plain data, such as `to_dict` gives.

        Raises:
            ConfigError: for unknown keys (with the near name) and for every invalid value, all at once.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{cls.__name__}: expected a mapping of options, found {type(data).__name__}")
        hints = typing.get_type_hints(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in data if key not in names]
        problems = [
            f"unknown option {shown(k)}{did_you_mean(k, names) if isinstance(k, str) else ''}" for k in unknown
        ]
        values = {}
        for key in names:
            if key not in data:
                continue
            nested = _nested_options(hints[key])
            try:
                values[key] = _build(nested, data[key]) if nested is not None else data[key]
            except ConfigError as error:
                problems.append(str(error))
                # A stand-in, so that the checks of this level still run and see that the part was given.
                values[key] = _stand_in(nested)
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and not _has_default(f)]
        problems += [f"{name!r} is missing" for name in missing]
        is_whole = not missing and None not in [values[k] for k in values if data[k] is not None]
        try:
            built = cls(**values) if is_whole else None
        except ConfigError as error:
            problems.append(str(error).removeprefix(f"{cls.__name__}: "))
        if problems or built is None:
            raise ConfigError(f"{cls.__name__}: " + "; ".join(problems))
        return built

    def to_json(self) -> str:
        """Return the options as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self, *, defaults: bool = True) -> str:
        """Return the options as YAML; `defaults` as for `to_dict`."""
        return write_yaml(self.to_dict(defaults=defaults))

    def save(self, path: str | Path) -> None:
        """Write to `path`: YAML if it ends in .yaml or .yml, otherwise JSON."""
        is_yaml = Path(path).suffix in (".yaml", ".yml")
        Path(path).write_text(self.to_yaml() if is_yaml else self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls: type[SelfOptions], path: str | Path) -> SelfOptions:
        """Read what `save` wrote, or any JSON or YAML file with these options."""
        return cls.from_dict(read_data_file(path))


def read_data_file(path: str | Path) -> Any:
    """Return the plain data in a JSON or YAML file (told apart by its ending).

    Raises:
        ConfigError: if there is no such file or it does not parse.
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        return read_yaml(text) if path.suffix in (".yaml", ".yml") else read_json(text)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_text(path: str | Path) -> str:
    """Return what a text file holds.

    Raises:
        DataError: if there is no such file, or it is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"expected a text file, found {str(path)!r}: {error}") from error


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _has_defaults(options: type[Options]) -> bool:
    return all(_has_default(f) for f in dataclasses.fields(options))


def _stand_in(options: type[Options] | None) -> Options | None:
    """Return `options` with nothing set, if that is valid."""
    try:
        return options() if options is not None and _has_defaults(options) else None
    except ConfigError:
        return None


def _build(options: type[Options], data: Any) -> Any:
    """Build nested options from a mapping, or a tuple of them from a list of mappings."""
    if isinstance(data, Mapping):
        return options.from_dict(data)
    if not isinstance(data, (list, tuple)):
        return data
    built, problems = [], []
    for item in data:
        try:
            built.append(options.from_dict(item) if not isinstance(item, options) else item)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return tuple(built)


def _without_options(value: Any) -> Any:
    """Leave out the nested options of a list, which have been checked themselves."""
    return [v for v in value if not isinstance(v, Options)] if isinstance(value, tuple) else value


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any, defaults: bool = True) -> Any:
    if isinstance(value, Options):
        return value.to_dict(defaults=defaults)
    if isinstance(value, (tuple, list)):
        return [_plain(v, defaults) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, defaults) for k, v in value.items()}
    return value


def _nested_options(hint: Any) -> type[Options] | None:
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, Options):
            return candidate
    return None


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(v, args[0]) for v in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if args:  # a union, X | None
        return any(_matches(value, a) for a in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


def _describe(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list of {args[0].__name__}"
    if args:
        return " or ".join(_describe(a) for a in args)
    return {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}.get(
        hint, "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
    )
