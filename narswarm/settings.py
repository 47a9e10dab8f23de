# SPDX-License-Identifier: GPL-3.0-or-later
"""Where settings come from: a TOML file, then the environment, then flags.

A program declares its settings as a frozen dataclass; the fields' types, defaults and help texts
are all there is to know about them, for reading as for documentation.  This is the one place that
reads the environment.  The file has a table for each program, so that one file serves a machine:

    [seeder]
    trackers = ["https://tracker.example.org"]
    quota = "10 GiB"

The same in the environment is `NARSWARM_SEEDER_TRACKERS` and `NARSWARM_SEEDER_QUOTA`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from narswarm.errors import SettingsError

DEFAULT_FILE: Final = Path("/etc/narswarm/narswarm.toml")
"""Read if it exists and no other file is named."""

PROGRAMS: Final = ("mkmeta", "seeder", "substituter", "tracker")
"""The tables that a file may have."""

_PREFIX: Final = "NARSWARM"

_SIZES: Final = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", 1)
}
_DURATIONS: Final = {"": 1, "ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_QUANTITY: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*")
_TRUTHS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_SCALARS: Final = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}
_LISTS: Final = {str: "texts", int: "integers", Path: "paths"}

_Settings = TypeVar("_Settings")


class _Kind(NamedTuple):
    """What a field takes: a scalar type, `tuple` or `dict`; of what, whether None, in what unit."""

    base: type
    item: type = str
    optional: bool = False
    unit: str | None = None

    @property
    def expected(self) -> str:
        """What a user should write."""
        if self.unit == "bytes":
            return "a size such as 4096 or '10 GiB'"
        if self.unit == "seconds":
            return "a time such as 30, '5 min' or '12 h'"
        if self.base is tuple:
            return f"a list of {_LISTS[self.item]}"
        if self.base is dict:
            return "a table of integers, texts and true or false"
        return _SCALARS[self.base]


class _Unfit(Exception):  # noqa: N818 - never leaves this module
    """A value isn't what its field takes; the argument says what it is instead."""


def load(
    cls: type[_Settings],
    section: str,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> _Settings:
    """Read the settings of a program; flags go before the environment, and that before the file.

    Args:
        cls: a dataclass with fields of type str, int, float, bool, Path, a `tuple[X, ...]` of str,
            int or Path, `Mapping[str, int | bool | str]`, or one of these `| None`.  The metadata
            of a field may have `help`, and `unit` `"bytes"` or `"seconds"` for numbers.
        section: the program, which is the table of the file and part of the variables' names.
        file: a file that was named; it must exist.  Otherwise `$NARSWARM_CONFIG` if that is set,
            or `DEFAULT_FILE` if that exists.
        environ: variables; those of the process by default.
        flags: values of flags by field; None and empty lists are flags that weren't given.

    Raises:
        SettingsError: something is unknown, missing or not what its field takes, or what the
            dataclass itself refuses; its `SettingsError` has the field, or `section.field`, as
            subject.
    """
    environ = os.environ if environ is None else environ
    kinds = _kinds(cls)
    values: dict[str, object] = {}
    named = file or (
        Path(environ[f"{_PREFIX}_CONFIG"]) if environ.get(f"{_PREFIX}_CONFIG") else None
    )
    layers = (
        _from_file(named or DEFAULT_FILE, section, kinds, required=named is not None),
        _from_environment(environ, section, kinds),
        _from_flags(flags or {}, kinds),
    )
    for layer in layers:
        values.update(layer)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T has no dataclass bound
        required = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
        if required and field.name not in values:
            raise SettingsError(
                f"{section}.{field.name}",
                f"is not set; it can be in {named or DEFAULT_FILE}, "
                f"{_variable(section, field.name)} or {_flag(field.name)}",
            )
    try:
        return cls(**values)
    except SettingsError as error:
        # What the dataclass refuses names its field; where that was set, only this place knows.
        in_file, in_environment, in_flags = (_named(error, section, layer) for layer in layers)
        if in_flags:
            # A flag that can be repeated is called after one of its values.
            one = in_flags.removesuffix("s") if kinds[in_flags].base is tuple else in_flags
            raise SettingsError(_flag(one), error.reason) from None
        if in_environment:
            raise SettingsError(_variable(section, in_environment), error.reason) from None
        if in_file:
            raise SettingsError(
                named or DEFAULT_FILE, f"{section}.{in_file}: {error.reason}"
            ) from None
        raise


def _named(error: SettingsError, section: str, values: Mapping[str, object]) -> str | None:
    """Return the field that an error is about, if it is among these."""
    name = error.subject.removeprefix(f"{section}.")
    return name if name in values else None


def describe(cls: type, section: str) -> str:
    """Return a TOML table with every setting of a program, commented out at its default."""
    lines = [f"[{section}]"]
    kinds = _kinds(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        lines.append("")
        if "help" in field.metadata:
            lines += _wrapped(field.metadata["help"])
        if default is dataclasses.MISSING:
            lines.append("# Must be set.")
        elif default is None:
            lines.append("# Not set by default.")
        if default is dataclasses.MISSING or default is None:
            default = _EXAMPLES[kind.base]
        lines.append(f"#{field.name} = {_toml(default, kind)}")
    return "\n".join(lines) + "\n"


_EXAMPLES: Final[Mapping[type, object]] = {
    str: "",
    int: 0,
    float: 0.0,
    bool: False,
    Path: Path("/"),
    tuple: (),
    dict: {},
}


def _kinds(cls: type) -> dict[str, _Kind]:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {field.name: _kind(hints[field.name], field.metadata.get("unit")) for field in fields}


def _kind(hint: Any, unit: str | None) -> _Kind:
    optional = False
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        optional, hint = len(members) < len(typing.get_args(hint)), members[0]
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _Kind(tuple, typing.get_args(hint)[0], optional)
    if origin in {dict, Mapping}:
        return _Kind(dict, optional=optional)
    return _Kind(hint, optional=optional, unit=unit)


def _from_file(
    file: Path, section: str, kinds: Mapping[str, _Kind], *, required: bool
) -> dict[str, object]:
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        if not required:
            return {}
        raise SettingsError(file, _reason(error)) from None
    except OSError as error:
        raise SettingsError(file, _reason(error)) from None
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(file, f"is not TOML: {error}") from None
    for program, table in document.items():
        if program not in PROGRAMS:
            raise SettingsError(file, f"{program}: no such table; {_nearest(program, PROGRAMS)}")
        if not isinstance(table, dict):
            raise SettingsError(file, f"{program}: expected a table, got {_what(table)}")
    values: dict[str, object] = {}
    for name, value in document.get(section, {}).items():
        if name not in kinds:
            raise SettingsError(file, f"{section}.{name}: no such setting; {_nearest(name, kinds)}")
        try:
            values[name] = _from_value(value, kinds[name])
        except _Unfit as error:
            raise SettingsError(
                file, f"{section}.{name}: expected {kinds[name].expected}, got {error}"
            ) from None
    return values


def _from_environment(
    environ: Mapping[str, str], section: str, kinds: Mapping[str, _Kind]
) -> dict[str, object]:
    fields = {_variable(section, name): name for name in kinds}
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(_variable(section, "")):
            continue
        if variable not in fields:
            raise SettingsError(variable, f"no such setting; {_nearest(variable, fields)}")
        kind = kinds[fields[variable]]
        try:
            values[fields[variable]] = _from_text(text, kind)
        except _Unfit as error:
            raise SettingsError(variable, f"expected {kind.expected}, got {error}") from None
    return values


def _from_flags(flags: Mapping[str, object], kinds: Mapping[str, _Kind]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        if name not in kinds:
            raise SettingsError(_flag(name), f"no such setting; {_nearest(name, kinds)}")
        kind = kinds[name]
        try:
            is_text = isinstance(value, str)
            values[name] = _from_text(str(value), kind) if is_text else _from_value(value, kind)
        except _Unfit as error:
            raise SettingsError(_flag(name), f"expected {kind.expected}, got {error}") from None
    return values


def _from_value(value: object, kind: _Kind) -> object:
    """Turn what TOML or a flag gives into what the field takes."""
    if kind.base is tuple:
        if not isinstance(value, (list, tuple)):
            raise _Unfit(_what(value))
        item = _Kind(kind.item)
        try:
            return tuple(_from_value(element, item) for element in value)
        except _Unfit as error:
            raise _Unfit(f"one with {error}") from None
    if kind.base is dict:
        if not isinstance(value, Mapping):
            raise _Unfit(_what(value))
        for element in value.values():
            if not isinstance(element, (str, int)):
                raise _Unfit(f"one with {_what(element)}")
        return dict(value)
    if kind.unit and isinstance(value, str):
        return _quantity(value, kind)
    if kind.base is Path and isinstance(value, (str, Path)) and str(value):
        return Path(value).expanduser()
    if kind.base is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(float(value), kind)
    # A bool is an int to Python, but not to people.
    if type(value) is not kind.base:
        raise _Unfit(_what(value))
    return _number(value, kind) if isinstance(value, int) and kind.base is int else value


def _from_text(text: str, kind: _Kind) -> object:
    """Turn a variable or the text of a flag into what the field takes."""
    stripped = text.strip()
    if not stripped and kind.optional:
        return None
    if kind.base is tuple:
        item = _Kind(kind.item)
        return tuple(_from_text(part, item) for part in re.split(r"[\s,]+", stripped) if part)
    if kind.base is dict:
        return dict(_pair(part) for part in re.split(r"[\s,]+", stripped) if part)
    if kind.unit:
        return _quantity(text, kind)
    try:
        if kind.base is bool:
            return _TRUTHS[stripped.lower()]
        if kind.base is int:
            return int(stripped)
        if kind.base is float:
            return _number(float(stripped), kind)
    except (KeyError, ValueError):
        raise _Unfit(repr(text)) from None
    if kind.base is Path:
        if not stripped:
            raise _Unfit(repr(text))
        return Path(text).expanduser()
    return text


def _pair(text: str) -> tuple[str, int | bool | str]:
    """Read `name=value` of a table, where the value is of the first type that fits."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise _Unfit(repr(text))
    if value in {"true", "false"}:
        return name, value == "true"
    return name, int(value) if re.fullmatch(r"-?\d{1,18}", value) else value


def _quantity(text: str, kind: _Kind) -> int | float:
    """Read a size or a time, with its unit or without."""
    units: Mapping[str, float] = _SIZES if kind.unit == "bytes" else _DURATIONS
    match = _QUANTITY.fullmatch(text)
    if not match or match[2] not in units:
        raise _Unfit(repr(text))
    factor = units[match[2]]
    if kind.base is float:
        return float(match[1]) * factor
    value = int(match[1]) * factor if match[1].isdecimal() else float(match[1]) * factor
    if value != int(value):
        raise _Unfit(repr(text))
    return int(value)


def _number(value: float, kind: _Kind) -> int | float:
    """Check a number: no infinity, and no size or time below zero."""
    if not math.isfinite(value) or (kind.unit and value < 0):
        raise _Unfit(repr(value))
    return value


def _toml(value: object, kind: _Kind) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _amount(value, kind.unit) if kind.unit else repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(element, kind) for element in value) + "]"
    if isinstance(value, Mapping):
        pairs = ", ".join(
            f"{_toml(key, kind)} = {_toml(each, kind)}" for key, each in value.items()
        )
        return f"{{ {pairs} }}" if pairs else "{}"
    text = str(value)
    escaped = "".join(
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text
    )
    return f'"{escaped}"'


def _amount(value: float, unit: str) -> str:
    """Write a size or time with the largest unit that leaves a whole number."""
    names = ("TiB", "GiB", "MiB", "KiB") if unit == "bytes" else ("d", "h", "min", "s")
    units: Mapping[str, float] = _SIZES if unit == "bytes" else _DURATIONS
    for name in names:
        if value and value % units[name] == 0:
            return f'"{value // units[name]:.0f} {name}"'
    return repr(value)


def _wrapped(text: str) -> list[str]:
    import textwrap  # noqa: PLC0415 - for documentation only

    return textwrap.wrap(text, 96, initial_indent="# ", subsequent_indent="# ")


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    """Say what somebody may have meant."""
    import difflib  # noqa: PLC0415 - for errors only

    return f"the nearest is {difflib.get_close_matches(name, list(known), 1, 0.0)[0]}"


def _what(value: object) -> str:
    """Say what a value is; texts are short enough to show."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a table"
    return _SCALARS.get(type(value), "a date or time")


def _variable(section: str, name: str) -> str:
    return f"{_PREFIX}_{section}_{name}".upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
