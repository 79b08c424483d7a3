from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mariner.properties import decode_properties, format_properties, parse_properties


def parsed(text: str) -> dict[str, str]:
    return {key: found.value for key, found in parse_properties(text).items()}


@pytest.mark.parametrize(
    "line", ["key=value", "key:value", "key value", "key = value", "  key\t:\fvalue", "key\tvalue"]
)
def test_a_key_ends_at_an_equals_sign_a_colon_or_a_blank(line: str) -> None:
    assert parsed(line) == {"key": "value"}


def test_only_the_first_separator_separates() -> None:
    assert parsed("inference_address=http://127.0.0.1:8080") == {"inference_address": "http://127.0.0.1:8080"}
    assert parsed("key = = value") == {"key": "= value"}


def test_escaped_separators_belong_to_the_key() -> None:
    assert parsed(r"a\=b\:c\ d=value") == {"a=b:c d": "value"}


def test_a_key_alone_has_an_empty_value() -> None:
    assert parsed("key\nother=\n") == {"key": "", "other": ""}


def test_comments_and_blank_lines_are_skipped() -> None:
    assert parsed("# one\n  ! two=2\n\n \t\nkey=#value") == {"key": "#value"}


def test_a_comment_cannot_be_continued() -> None:
    assert parsed("# comment \\\nkey=value") == {"key": "value"}


def test_a_backslash_at_the_end_continues_the_line_without_the_blanks_that_follow() -> None:
    assert parsed('models={\\\n  "m": {\\\r\n\t"1.0": {}}}\nnext=1') == {"models": '{"m": {"1.0": {}}}', "next": "1"}


def test_an_even_number_of_backslashes_continues_nothing() -> None:
    assert parsed("path=C:\\\\\nnext=1") == {"path": "C:\\", "next": "1"}


def test_a_backslash_at_the_end_of_the_file_is_dropped() -> None:
    assert parsed("key=value\\") == {"key": "value"}


def test_escapes_spell_characters() -> None:
    assert parsed(r"key=\t\n\r\f\\\"\q\u00e9\uD83D\ude00") == {"key": '\t\n\r\f\\"qé😀'}


def test_blanks_at_the_end_of_a_value_are_kept() -> None:
    assert parsed("key=value \t") == {"key": "value \t"}


def test_the_last_of_equal_keys_wins_and_knows_its_line() -> None:
    assert parse_properties("a=1\n\nb=\\\n2\na=3")["a"] == ("3", 5)


def test_only_java_line_ends_end_a_line() -> None:
    assert parsed("a=1\x0b2\u20283\rb=4\r\nc=5") == {"a": "1\x0b2\u20283", "b": "4", "c": "5"}


def test_a_bad_unicode_escape_is_an_error_that_names_the_line() -> None:
    with pytest.raises(ValueError, match=r"line 2: .*four hexadecimal digits"):
        parse_properties("a=1\nstore=C:\\users\n")


def test_files_may_be_utf8_or_latin1() -> None:
    assert decode_properties("é".encode()) == "é"
    assert decode_properties("é".encode("latin-1")) == "é"
    assert decode_properties("\ufeffkey=1".encode()) == "key=1"


ESCAPES = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\f": r"\f"} | {
    character: f"\\{character}" for character in "\\ =:#!"
}


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), max_size=5))
def test_whatever_is_written_with_escapes_is_read_back(properties: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        return "".join(ESCAPES.get(character, character) for character in text)

    text = "\n".join(f"{escaped(key)}={escaped(value)}" for key, value in properties.items())
    assert parsed(text) == properties


@given(st.text(st.sampled_from("ab \t\f=:#!\\u0\n\r"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_properties(text)


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_what_is_written_is_read_again(properties: dict[str, str]) -> None:
    assert parsed(format_properties(properties)) == properties


def test_properties_are_written_as_java_does() -> None:
    text = format_properties({"a key": "http://x:1", "n": "\n\t", "é": "😀", "blank": "  b "})
    assert text == "a\\ key=http\\://x\\:1\nn=\\n\\t\n\\u00e9=\\ud83d\\ude00\nblank=\\ \\ b \n"
