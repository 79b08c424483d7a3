"""How one value of a setting is read from text and written as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from mariner.address import Address
from mariner.errors import ConfigurationError
from mariner.settings import Origin, Setting

__all__ = ["Found", "format_value", "read_value"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Found:
    """A text somebody set, not yet read."""

    text: str
    origin: Origin


class _Unreadable(ValueError):
    """A text is not what its setting takes; the message says what it takes."""


def read_value(setting: Setting, found: Found, cwd: Path, warnings: list[str]) -> Any:
    """The value of a setting, or None for "not set"; an empty text sets only what is text.

    Args:
        setting: says what to expect.
        found: the text.
        cwd: where relative paths start.
        warnings: takes what is odd but no error.

    Raises:
        ConfigurationError: the text is not what the setting takes.
    """
    text = found.text.strip()  # TorchServe keeps blanks at the end, and then "true " is not true
    if not text and (setting.optional or setting.type is not str):
        return None
    shown = "********" if setting.secret else text
    try:
        if setting.type is bool:
            return _read_bool(setting, text, found.origin, warnings)
        if isinstance(setting.type, type) and issubclass(setting.type, Enum):
            return _read_enum(setting.type, text)
        return _READERS[setting.type](text, setting, cwd)
    except _Unreadable as error:
        problem = f"{setting.key}={shown} ({found.origin}): {error}"
        if setting.lenient or setting.java_only:
            warnings.append(f"{problem} It keeps its default.")
            return None
        raise ConfigurationError(f"Invalid configuration: {problem}") from error


def _read_bool(setting: Setting, text: str, origin: Origin, warnings: list[str]) -> bool:
    word = text.lower()
    if not setting.ours:  # in TorchServe everything but "true" is false, and no error
        if word not in {"true", "false"}:
            warnings.append(f"{setting.key}={text} ({origin}) means false; only true means true.")
        return word == "true"
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise _Unreadable("Expected true or false.")


def _read_enum(kind: type[Enum], text: str) -> Enum:
    try:
        return kind(text.lower())
    except ValueError:
        raise _Unreadable(f"Expected {' or '.join(member.value for member in kind)}.") from None


def _read_int(text: str, setting: Setting, _cwd: Path) -> int:
    if not _INTEGER.fullmatch(text):
        raise _Unreadable(_expected_number("a whole number", setting))
    return _in_range(int(text), "a whole number", setting)


def _read_float(text: str, setting: Setting, _cwd: Path) -> float:
    if not _FLOAT.fullmatch(text) or math.isinf(float(text)):
        raise _Unreadable(_expected_number("a number", setting))
    return _in_range(float(text), "a number", setting)


def _in_range(value: _Number, kind: str, setting: Setting) -> _Number:
    if setting.minimum is not None and value < setting.minimum:
        raise _Unreadable(_expected_number(kind, setting))
    return value


def _expected_number(kind: str, setting: Setting) -> str:
    unit = f" ({setting.unit})" if setting.unit else ""
    least = "" if setting.minimum is None else f" of at least {setting.minimum:g}"
    return f"Expected {kind}{least}{unit}."


def _read_path(text: str, _setting: Setting, cwd: Path) -> Path:
    try:
        return (cwd / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _Unreadable(f"Expected a path: {error}.") from error


def _read_address(text: str, setting: Setting, _cwd: Path) -> Address:
    try:
        return Address.parse(text, http_port=setting.ports[0], https_port=setting.ports[1])
    except ConfigurationError as error:
        raise _Unreadable(f"{error.message}. {error.hint}") from error


def _read_list(text: str, _setting: Setting, _cwd: Path) -> tuple[str, ...]:
    return tuple(item for part in text.split(",") if (item := part.strip()))


def _read_pattern(text: str, _setting: Setting, _cwd: Path) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise _Unreadable(f"Expected a regular expression: {error}.") from error


def _read_patterns(text: str, setting: Setting, cwd: Path) -> tuple[re.Pattern[str], ...]:
    patterns = [_read_pattern(item, setting, cwd) for item in _read_list(text, setting, cwd)]
    return tuple(re.compile(pattern.pattern, re.IGNORECASE) for pattern in patterns)


def _read_json(text: str, _setting: Setting, _cwd: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _Unreadable(f"Expected a JSON object: {error}.") from error
    except RecursionError as error:
        raise _Unreadable("Expected a JSON object: it is nested too deeply.") from error
    if not isinstance(value, dict):
        raise _Unreadable("Expected a JSON object.")
    return value


_READERS: Final[Mapping[Any, Callable[[str, Setting, Path], Any]]] = {
    int: _read_int,
    float: _read_float,
    str: lambda text, _setting, _cwd: text,
    Path: _read_path,
    Address: _read_address,
    tuple[str, ...]: _read_list,
    re.Pattern[str]: _read_pattern,
    tuple[re.Pattern[str], ...]: _read_patterns,
    dict[str, Any]: _read_json,
}


def format_value(setting: Setting, value: Any) -> str:
    """A value as ``config.properties`` has it; secrets are starred out, "" stands for unset."""
    if setting.secret:
        return "" if value is None else "********"
    if isinstance(value, tuple):
        return ",".join(_format(item) for item in value)
    return _format(value)


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, re.Pattern):
        return str(value.pattern)
    if isinstance(value, dict):
        return json.dumps(value) if value else ""
    return "" if value is None else str(value)
