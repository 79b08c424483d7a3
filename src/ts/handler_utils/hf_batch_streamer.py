"""Text of several sequences while they are generated, in step: for ``model.generate(streamer=...)`` of Transformers.

Needs neither Transformers nor torch: the tokenizer is given, and tokens come with ``tolist``.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

__all__ = ["TextIteratorStreamerBatch"]

# Scripts that are written without spaces, so that each character can be shown: first and last code points.
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class TextIteratorStreamerBatch:
    """Takes tokens from a thread that generates and yields text to the one that iterates.

    Each iteration yields ``[{"text": piece}, ...]``, one piece for each sequence, "" if it has no whole word yet. The
    sequences end together, with :meth:`end`; afterwards the object serves the next generation.

    Args:
        tokenizer: decodes tokens.
        batch_size: number of sequences.
        skip_prompt: leave out the tokens that were given, which come first.
        timeout: seconds to wait for a piece; None to wait as long as it takes. ``queue.Empty`` is raised after it.
        decode_kwargs: for the tokenizer's ``decode``.
    """

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.decode_kwargs = decode_kwargs
        self._pieces: queue.SimpleQueue[list[dict[str, str]] | None] = queue.SimpleQueue()
        self._reset()

    def _reset(self) -> None:
        self._sequences = [_Sequence(self.tokenizer, self.decode_kwargs) for _ in range(self.batch_size)]
        self._prompt_follows = self.skip_prompt

    def put(self, value: Any) -> None:
        """Takes the next tokens of every sequence.

        Args:
            value: a tensor whose first dimension is the batch: the prompts, then one token for each sequence.

        Raises:
            ValueError: the first dimension is not ``batch_size``.
        """
        rows = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(rows, list) or len(rows) != self.batch_size:
            found = len(rows) if isinstance(rows, list) else "no"
            raise ValueError(f"Tokens of {self.batch_size} sequences were expected (batch_size), {found} came.")
        if self._prompt_follows:
            self._prompt_follows = False
            return
        pieces = [
            sequence.add(row if isinstance(row, list) else [row])
            for sequence, row in zip(self._sequences, rows, strict=True)
        ]
        self._pieces.put([{"text": piece} for piece in pieces])

    def end(self) -> None:
        """Hands out what is left of every sequence and ends the iteration."""
        self._pieces.put([{"text": sequence.rest()} for sequence in self._sequences])
        self._pieces.put(None)
        self._reset()

    def __iter__(self) -> Iterator[list[dict[str, str]]]:
        return self

    def __next__(self) -> list[dict[str, str]]:
        pieces = self._pieces.get(timeout=self.timeout)
        if pieces is None:
            raise StopIteration
        return pieces


class _Sequence:
    """One sequence: tokens in, text out as soon as later tokens cannot change it."""

    def __init__(self, tokenizer: Any, decode_kwargs: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._decode_kwargs = decode_kwargs
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, tokens: list[int]) -> str:
        """The text that has become final."""
        self._tokens += tokens
        text: str = self._tokenizer.decode(self._tokens, **self._decode_kwargs)
        if text.endswith("\n"):
            piece = text[self._shown :]
            self._tokens, self._shown = [], 0  # a line is never changed by the next, and long texts stay cheap
            return piece
        end = len(text) if text and _is_ideograph(text[-1]) else text.rfind(" ") + 1
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def rest(self) -> str:
        """The text that was held back."""
        if not self._tokens:
            return ""
        text: str = self._tokenizer.decode(self._tokens, **self._decode_kwargs)
        return text[self._shown :]


def _is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in IDEOGRAPHS)
