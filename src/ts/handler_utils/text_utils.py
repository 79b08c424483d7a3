"""Words of a text: the tokenizer that text models were trained with, and sequences of neighbouring words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

__all__ = ["get_tokenizer", "ngrams_iterator"]

Tokenizer = Callable[[str], list[str]]

# These characters become words of their own; quotation marks go, and the rest separates words.
_ENGLISH = str.maketrans({**{mark: f" {mark} " for mark in "'.,()!?"}, ";": " ", ":": " "})


def _split(text: str) -> list[str]:
    return text.split()


def _basic_english(text: str) -> list[str]:
    return text.lower().replace('"', "").replace("<br />", " ").translate(_ENGLISH).split()


def get_tokenizer(tokenizer: str | Tokenizer | None, language: str = "en") -> Tokenizer:
    """A function that cuts a text into words.

    Args:
        tokenizer: ``basic_english`` for words in lower case with punctuation as words of its own, None for cutting at
            white space, or a function, which is returned as it is.
        language: only ``en`` has ``basic_english``.

    Raises:
        ValueError: there is no such tokenizer, or not for this language.
    """
    if tokenizer is None:
        return _split
    if callable(tokenizer):
        return tokenizer
    if tokenizer != "basic_english":
        raise ValueError(f"No tokenizer {tokenizer!r}: give 'basic_english', None, or a function from text to words.")
    if language != "en":
        raise ValueError(f"basic_english is for English (en), not for {language!r}: give a function of your own.")
    return _basic_english


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """All words, then all pairs of neighbours, then all triples, and so on; words are joined by a space.

    Args:
        token_list: the words.
        ngrams: how many words belong together at most.
    """
    yield from token_list
    for size in range(2, ngrams + 1):
        for start in range(len(token_list) - size + 1):
            yield " ".join(token_list[start : start + size])
