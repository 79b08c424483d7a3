"""From the bytes of a request to what a handler gets, and from what it returns to the bytes of an answer."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from ts.wire import Buffer

__all__ = ["decode_value", "encode_output"]

logger = logging.getLogger(__name__)

# -- what goes into a handler ----------------------------------------------------------------------------------------

_DIGITS = bytes(ord("0") if chr(code).isdigit() else ord(" ") for code in range(128)).ljust(256)
_LONG_NUMBER = b"0" * 19


def _parse_json(text: Buffer) -> Any:
    # orjson turns integers beyond 64 bits into floats without a word. They have at least 19 digits; the standard
    # library reads whatever has, and what orjson refuses: NaN, lone surrogates, UTF-16...
    if len(text) < len(_LONG_NUMBER) or _LONG_NUMBER not in bytes(text).translate(_DIGITS):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    return json.loads(bytes(text))


def decode_value(value: Buffer, content_type: str) -> Any:
    """The value of a parameter as handlers see it: decoded JSON, text, or a bytearray for everything else."""
    if content_type:
        kind = content_type
        if kind != "application/json":
            kind = kind.partition(";")[0].strip().lower()
        try:
            if kind == "application/json":
                return _parse_json(value)
            if kind.startswith("text"):
                return str(value, "utf-8")
        except (ValueError, RecursionError):
            logger.warning("A request body is not valid %s; the handler gets its %d bytes.", kind, len(value))
    return bytearray(value)


# -- what comes out of it --------------------------------------------------------------------------------------------

_PLAIN = frozenset({str, int, bool, float, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
# What the two encoders write differently: small floats, characters that need no escape in UTF-8, NaN.
_DIFFERENT = re.compile(rb"[0-9]e|0\.0000|null|[^\x00-\x7e]")
_DIFFERENT_TEXT = re.compile(rb"[^\x00-\x7e]")


def _collect_types(value: Any, found: set[type], depth: int) -> bool:
    """Adds the types inside a container to ``found``; False if orjson could treat one of them in its own way."""
    if type(value) is dict:
        if not set(map(type, value)) <= {str}:
            return False
        children: Iterable[Any] = value.values()
    else:
        children = value
    types = set(map(type, children))
    found |= types
    inner = types - _PLAIN
    if not inner:
        return True
    if depth == 0 or not inner <= _CONTAINERS:
        return False
    return all(type(child) in _PLAIN or _collect_types(child, found, depth - 1) for child in children)


def _format_json(value: Any) -> bytes:
    # The bytes must be those of json.dumps(value, indent=2), since clients compare them. orjson writes the same, 50
    # times faster, for the values that pass these tests; the rest goes the slow way.
    if type(value) in _CONTAINERS:
        found: set[type] = set()
        if _collect_types(value, found, 100):
            try:
                text = orjson.dumps(value, option=orjson.OPT_INDENT_2)
            except TypeError:  # an integer of more than 64 bits, a lone surrogate
                pass
            else:
                if (_DIFFERENT if float in found else _DIFFERENT_TEXT).search(text) is None:
                    return text
    return json.dumps(value, indent=2).encode("ascii")


def encode_output(item: Any) -> bytes:
    """The body of a response for one element of what a handler returned.

    Raises:
        TypeError: the element is of a type that no response can carry.
        ValueError: it contains itself, or text that is no Unicode.
        RecursionError: it is nested too deeply.
    """
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytearray):
        return bytes(item)  # the handler may use it again before the reply is on its way
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(item, torch.Tensor):
        file = io.BytesIO()
        torch.save(item, file)
        return file.getvalue()
    return _format_json(item)
