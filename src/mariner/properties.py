"""The Java ``.properties`` format: text to keys and values. What the keys mean is in :mod:`mariner.settings`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["Property", "decode_properties", "format_properties", "parse_properties"]

_BLANKS = " \t\f"
_NEWLINE = re.compile(r"\r\n|\r|\n")  # str.splitlines() knows more kinds than Java does
# Up to the first separator that no backslash protects; the blanks around one "=" or ":" belong to it.
_KEY = re.compile(r"(?P<key>(?:\\.|[^\\=: \t\f])*)[ \t\f]*(?:[=:][ \t\f]*)?", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_SPECIAL = re.compile(r"[\\=:#!\t\n\r\f]|[^ -~]")


class Property(NamedTuple):
    """A value and the line it begins on."""

    value: str
    line: int


def decode_properties(content: bytes) -> str:
    """The text of a file: UTF-8, or else ISO-8859-1, the encoding that Java prescribes."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("iso-8859-1")


def parse_properties(text: str) -> dict[str, Property]:
    r"""Reads keys and values as ``java.util.Properties`` does; of equal keys the last one wins.

    Raises:
        ValueError: a ``\u`` is not followed by four hexadecimal digits; the text says on which line.
    """
    properties = {}
    for number, line in _logical_lines(text):
        match = _KEY.match(line)
        assert match is not None  # every part of the pattern may be empty
        try:
            properties[_unescape(match["key"])] = Property(_unescape(line[match.end() :]), number)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return properties


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, without comments and blank lines."""
    lines = enumerate(_NEWLINE.split(text), start=1)
    for number, line in lines:
        logical = line.lstrip(_BLANKS)
        if not logical or logical[0] in "#!":
            continue
        while (len(logical) - len(logical.rstrip("\\"))) % 2:
            logical = logical[:-1]
            if not logical:  # a lone backslash: Java takes the next line for a new one
                break
            _, following = next(lines, (0, ""))
            logical += following.lstrip(_BLANKS)
        if logical:
            yield number, logical


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text

    def replacement(match: re.Match[str]) -> str:
        digits, character = match.groups()
        if digits is not None:
            return chr(int(digits, 16))
        if character == "u":
            raise ValueError(r"\u must be followed by four hexadecimal digits; write a backslash as \\")
        return _ESCAPED.get(character, character)

    text = _ESCAPE.sub(replacement, text)
    # Java text is UTF-16: a pair of \u escapes may spell one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def format_properties(properties: Mapping[str, str]) -> str:
    r"""Writes keys and values as ``java.util.Properties`` does: ASCII, ``\uXXXX`` for all else."""
    return "".join(
        f"{_escape(key).replace(' ', chr(92) + ' ')}={_escape_value(value)}\n" for key, value in properties.items()
    )


def _escape_value(text: str) -> str:
    rest = text.lstrip(" ")
    return "\\ " * (len(text) - len(rest)) + _escape(rest)  # blanks at the start would not count


def _escape(text: str) -> str:
    escapes = {character: f"\\{letter}" for letter, character in _ESCAPED.items()}

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if " " <= character <= "~":
            return f"\\{character}"
        if character in escapes:
            return escapes[character]
        pairs = character.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))

    return _SPECIAL.sub(escape, text)
