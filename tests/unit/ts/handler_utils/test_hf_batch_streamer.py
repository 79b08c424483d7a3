from __future__ import annotations

import queue
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from ts.handler_utils.hf_batch_streamer import TextIteratorStreamerBatch

WORDS = ["<pad>", "Good", " ever", "more", " world", "\n", "你", "好", " end"]


class Tokenizer:
    def decode(self, tokens: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(WORDS[token] for token in tokens if token or not skip_special_tokens)


def streamer(batch_size: int = 2, **options: Any) -> TextIteratorStreamerBatch:
    return TextIteratorStreamerBatch(Tokenizer(), batch_size, timeout=10, **options)


def texts(pieces: TextIteratorStreamerBatch) -> list[list[str]]:
    return [[piece["text"] for piece in step] for step in pieces]


def test_words_come_out_in_step_once_they_are_whole() -> None:
    pieces = streamer()
    for tokens in ([1, 6], [2, 7], [3, 8], [4, 8]):
        pieces.put(np.array(tokens))
    pieces.end()
    assert texts(pieces) == [["", "你"], ["Good ", "好"], ["", " "], ["evermore ", "end "], ["world", "end"]]


def test_a_line_is_shown_at_its_end() -> None:
    pieces = streamer(1)
    for token in (1, 5, 4):
        pieces.put(np.array([token]))
    pieces.end()
    assert texts(pieces) == [[""], ["Good\n"], [" "], ["world"]]


@pytest.mark.parametrize("skip", [True, False])
def test_the_prompt_can_be_left_out(skip: bool) -> None:
    pieces = streamer(skip_prompt=skip)
    pieces.put(np.array([[1, 2], [1, 2]]))
    pieces.put(np.array([3, 3]))
    pieces.put(np.array([8, 8]))
    pieces.end()
    found = texts(pieces)
    whole = ["".join(column) for column in zip(*found, strict=True)]
    assert whole == (["more end"] * 2 if skip else ["Good evermore end"] * 2)


def test_decoding_takes_its_options() -> None:
    pieces = streamer(skip_special_tokens=True)
    pieces.put(np.array([1, 0]))
    pieces.end()
    assert texts(pieces) == [["", ""], ["Good", ""]]


def test_it_serves_one_generation_after_the_other() -> None:
    pieces = streamer(1, skip_prompt=True)
    for _ in range(2):
        pieces.put(np.array([[1, 1]]))
        pieces.put(np.array([4]))
        pieces.end()
        assert texts(pieces) == [[" "], ["world"]]


@pytest.mark.parametrize("value", [np.array([1]), np.array([1, 2, 3]), np.array([[1, 2]]), np.array(1)])
def test_another_number_of_sequences_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="2 sequences"):
        streamer(2).put(value)


def test_it_waits_for_another_thread_but_not_forever() -> None:
    pieces = streamer(1)

    def generate() -> None:
        pieces.put(np.array([6]))
        pieces.end()

    thread = threading.Thread(target=generate)
    thread.start()
    assert texts(pieces) == [["你"], [""]]
    thread.join()
    pieces.timeout = 0.001
    with pytest.raises(queue.Empty):
        next(pieces)


@pytest.mark.slow
def test_it_is_imported_without_transformers_and_torch() -> None:
    code = (
        "import sys, ts.handler_utils.hf_batch_streamer, ts.handler_utils.micro_batching\n"
        "import ts.torch_handler.request_envelope.kfservingv2\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
