"""Sends the exchanges of a scenario to a server and collects the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from oracle.answer import Answer
from oracle.exchange import Exchange, Listener, Scenario
from oracle.normalise import Names, normalise
from oracle.servers import Target
from oracle.wire import Connection, Received, request_bytes

__all__ = ["ask", "play"]

POLL_SECONDS = 0.05
UNTIL_SECONDS = 90.0  # TorchServe's pauses between two starts of a worker add up


def play(scenario: Scenario, target: Target) -> Iterator[tuple[Exchange, list[Answer]]]:
    """All exchanges in turn, each with its answers."""
    for exchange in scenario.exchanges:
        yield exchange, ask(exchange, target)


def ask(exchange: Exchange, target: Target) -> list[Answer]:
    """The answers to one exchange."""
    deadline = time.monotonic() + UNTIL_SECONDS
    while True:
        received = _exchange(exchange, target)
        first = received[0]
        if exchange.until is None or exchange.until(first.code, first.body) or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    places = target.names()
    together = Names(places)
    answers = [normalise(one, Names(places) if exchange.also else together, exchange.limit) for one in received]
    if exchange.view is not None:
        answers = [exchange.view(answer) for answer in answers]
    if exchange.distinct:
        answers = sorted(dict.fromkeys(answers), key=lambda answer: answer.code)
    return answers


def _exchange(exchange: Exchange, target: Target) -> list[Received]:
    host = target.hosts[exchange.on]
    bodies = [exchange.body, *exchange.also]
    if exchange.times > 1:
        bodies *= exchange.times
    try:
        if exchange.also:
            return _side_by_side(exchange, target, host, bodies)
        connection = Connection(host, exchange.patience)
    except ConnectionRefusedError:
        return [Received(connection="refused")]
    try:
        return [_one(exchange, target, connection, body) for body in bodies]
    finally:
        connection.close()


def _one(exchange: Exchange, target: Target, connection: Connection, body: bytes) -> Received:
    begun = time.monotonic()
    host = target.hosts[exchange.on]
    received = connection.send(*request_bytes(exchange, host, body, target.resolve), exchange.framing)
    connection.receive(received, has_body=exchange.method != "HEAD")
    received.seconds = time.monotonic() - begun
    return received


def _side_by_side(exchange: Exchange, target: Target, host: str, bodies: list[bytes]) -> list[Received]:
    """Sends everything before it reads anything."""
    connections = [Connection(host, exchange.patience) for _ in bodies]
    begun = time.monotonic()
    answers = []
    for connection, body in zip(connections, bodies, strict=True):
        message = request_bytes(exchange, host, body, target.resolve)
        answers.append(connection.send(*message, exchange.framing))
    for connection, received in zip(connections, answers, strict=True):
        connection.receive(received, has_body=True)
        received.seconds = time.monotonic() - begun
        connection.close()
    return answers


def listeners(inference: str, management: str, metrics: str) -> dict[Listener, str]:
    """Host and port of each listener, from base URLs."""
    urls = {Listener.INFERENCE: inference, Listener.MANAGEMENT: management, Listener.METRICS: metrics}
    return {listener: url.rstrip("/").partition("://")[2] or url for listener, url in urls.items()}
