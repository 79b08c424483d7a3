from __future__ import annotations

import pytest

from ts.handler_utils.text_utils import get_tokenizer, ngrams_iterator


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("You can now install it!", ["you", "can", "now", "install", "it", "!"]),
        ("It's (so) good, no? Yes.", ["it", "'", "s", "(", "so", ")", "good", ",", "no", "?", "yes", "."]),
        ('a "b" c;d:e<br />f', ["a", "b", "c", "d", "e", "f"]),
        ("  tabs\tand\nlines ", ["tabs", "and", "lines"]),
        ("", []),
    ],
)
def test_basic_english_makes_words_of_punctuation(text: str, words: list[str]) -> None:
    assert get_tokenizer("basic_english")(text) == words


def test_without_a_tokenizer_text_is_cut_at_white_space() -> None:
    assert get_tokenizer(None)("Don't  stop.") == ["Don't", "stop."]


def test_a_function_is_its_own_tokenizer() -> None:
    assert get_tokenizer(list) is list


def test_a_tokenizer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="No tokenizer 'spacy'"):
        get_tokenizer("spacy")


def test_basic_english_is_english() -> None:
    with pytest.raises(ValueError, match="not for 'de'"):
        get_tokenizer("basic_english", language="de")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, ["here", "we", "are"]),
        (2, ["here", "we", "are", "here we", "we are"]),
        (3, ["here", "we", "are", "here we", "we are", "here we are"]),
        (4, ["here", "we", "are", "here we", "we are", "here we are"]),
    ],
)
def test_words_come_before_pairs_before_triples(size: int, expected: list[str]) -> None:
    assert list(ngrams_iterator(["here", "we", "are"], size)) == expected
