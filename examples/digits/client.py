"""A client: several threads, each with its own connection, send images and wait for the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    """What the server said about one image, and how long the client waited for it."""

    path: Path
    digit: int
    probability: float
    milliseconds: float


class UnexpectedAnswer(Exception):
    """The server answered something else than a digit."""


def classify(
    paths: Sequence[Path], port: int, clients: int, on_answer: Callable[[Answer], object] = lambda _: None
) -> list[Answer]:
    """Sends each image once, from ``clients`` threads at a time, and returns the answers in the order of the images.

    Raises:
        UnexpectedAnswer: an answer was not status 200 with a digit.
        OSError: the server cannot be reached.
    """

    def client(share: Sequence[Path]) -> list[Answer]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            answers = []
            for path in share:
                answers.append(ask(connection, path))
                on_answer(answers[-1])
            return answers
        finally:
            connection.close()

    shares = [paths[first::clients] for first in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        answers = [answer for share in threads.map(client, shares) for answer in share]
    return sorted(answers, key=lambda answer: answer.path)


def ask(connection: HTTPConnection, path: Path) -> Answer:
    """Sends one image and waits for its answer."""
    image = path.read_bytes()
    start = time.perf_counter()
    connection.request("POST", "/predictions/digits", body=image, headers={"Content-Type": "image/png"})
    response = connection.getresponse()
    body = response.read()
    milliseconds = (time.perf_counter() - start) * 1000
    if response.status != 200:
        raise UnexpectedAnswer(f"{path.name}: status {response.status}, {body.decode(errors='replace')}")
    try:
        answer = json.loads(body)
        return Answer(path, answer["digit"], answer["probability"], milliseconds)
    except (ValueError, KeyError, TypeError):
        raise UnexpectedAnswer(f"{path.name}: {body[:200]!r} is not the answer of the handler") from None
