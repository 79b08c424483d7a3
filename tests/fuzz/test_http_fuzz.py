"""A few thousand inputs of the HTTP fuzzer, and what it finds in servers that are broken on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import http_fuzzer
import pytest
import uvloop
from http_fuzzer import BOUNDS, Target, Wrong, fuzz
from http_inputs import Ending, make_input
from http_oracle import expected_answers

from mariner.http import protocol
from mariner.http.exchange import Exchange
from mariner.http.protocol import HttpProtocol

HOST = b"Host: h\r\n"
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.slow
@pytest.mark.parametrize(("new_loop", "seed"), list(zip(LOOPS, (1, 1_000_001), strict=True)), ids=["asyncio", "uvloop"])
def test_rubbish_gets_the_answers_it_deserves(new_loop: Callable[[], Any], seed: int) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        figures = runner.run(fuzz(seed, 2000))
    assert figures.inputs == 2000
    assert {200, 400, 403, 404, 405, 413} <= set(figures.answers)
    assert set(figures.answers) <= {200, 400, 403, 404, 405, 408, 413, 417}
    assert {ending.name for ending in Ending} <= set(figures.endings)


# -- the fuzzer itself -----------------------------------------------------------------------------------------------


def test_a_seed_always_gives_the_same_input() -> None:
    assert [make_input(seed) for seed in range(50)] == [make_input(seed) for seed in range(50)]


@pytest.mark.slow
async def test_a_wrong_body_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "_first_value", lambda *_: b"something else")
    with pytest.raises(Wrong, match=r"with b'something else' instead of|an honest request"):
        await fuzz(1, 100)


@pytest.mark.slow
async def test_an_answer_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Exchange._finish

    def answer_again(self: Exchange) -> None:
        if self.method == "DELETE":
            self.connection.write(b"HTTP/1.1 200 OK\r\nx-request-id: 1\r\nconnection: x\r\ncontent-length: 0\r\n\r\n")
        finish(self)

    monkeypatch.setattr(Exchange, "_finish", answer_again)
    with pytest.raises(Wrong, match=r"requests got|was answered"):
        await fuzz(1, 400)


@pytest.mark.slow
async def test_a_connection_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_fuzzer, "PATIENCE", 0.5)
    monkeypatch.setattr(HttpProtocol, "eof_received", lambda _self: True)
    with pytest.raises(Wrong, match="the connection hangs"):
        await fuzz(1, 100)


@pytest.mark.slow
async def test_a_smuggled_request_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "check_head", lambda *_: None)  # which refuses two Host headers
    with pytest.raises(Wrong, match="was answered"):
        await fuzz(1, 3000)


# -- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n", [{200}]),
        (b"\r\nGET /ping HTTP/1.1\r\n" + HOST + b"\r\n" * 2 + b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", [{200}, {405}]),
        (b"GET /ping HTTP/1.0\r\n\r\nGET /ping HTTP/1.1\r\n\r\n", [{200}]),
        (b"GET /ping HTTP/1.1\r\nConnection: close\r\n\r\nGET /ping HTTP/1.1\r\n\r\n", [{200}]),
        (b"GET /%zz HTTP/1.1\r\n" + HOST + b"\r\n", [{400}]),
        (b"GET /ping HTTP/1.1\r\nHost : h\r\n\r\n", [{400}]),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b" folded: x\r\n\r\n", [{400}]),
        (b"GET /ping HTTP/1.1\nHost: h\n\n\r\n\r\n", [{400}]),
        (b"GET /ping HTTP/1.1\r\n" + HOST * 2 + b"\r\n", [{400}]),
        (b"POST /ping HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", [{400}]),
        (b"POST /ping HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [{400}]),
        (b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", [{400, 413}]),
        (b"POST /ping HTTP/1.1\r\nExpect: tea\r\nContent-Length: 1\r\n\r\n", [{417}]),
        (b"POST /ping HTTP/1.1\r\nContent-Length: 20001\r\n\r\n" + b"x" * 20_001, [{413}]),
        (b"POST /ping HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n", [{413}]),
    ],
)
def test_the_oracle_knows_what_may_be_answered(sent: bytes, statuses: list[set[int]]) -> None:
    expected = list(expected_answers(sent, BOUNDS))
    assert [answer.statuses for answer in expected] == statuses
    assert not any(answer.optional for answer in expected)


@pytest.mark.parametrize(
    ("framed", "body"),
    [
        (b"Content-Length: 3\r\n\r\nabc", b"abc"),
        (b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n01\r\nc\r\n0\r\nT: t\r\n\r\n", b"abc"),
        (b"\r\n", b""),
    ],
)
def test_the_oracle_knows_the_body(framed: bytes, body: bytes) -> None:
    (answer,) = expected_answers(b"POST /predictions/echo HTTP/1.1\r\n" + framed, BOUNDS)
    assert (answer.statuses, answer.body, answer.closes) == ({200}, body, False)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET",
        b"GET /ping HTTP/1.1\r\nHost",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nS",
    ],
)
def test_what_is_not_complete_needs_no_answer(sent: bytes) -> None:
    (answer,) = expected_answers(sent, BOUNDS)
    assert answer.optional
