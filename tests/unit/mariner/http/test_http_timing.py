"""The header that says where the time of a prediction went."""

from __future__ import annotations

import pytest
from conftest import Running, Start
from http_peer import Behaviour, fail, get, post

from mariner.errors import QueueFull
from mariner.http.connections import Limits
from mariner.jobs import Job, Reply

ALL = "queue;dur=10.000, batch;dur=20.000, transfer;dur=5.500, handler;dur=64.500"


@pytest.fixture
async def timed(start: Start) -> Running:
    """The server's clock stands at 100.1; jobs came at 100.0, were taken at 100.01 and begun at 100.03."""
    running = await start(limits=Limits(timed_answers=2))
    running.models.time = 100.1
    return running


def answered(reply: Reply, *, first: Reply | None = None) -> Behaviour:
    def behaviour(job: Job) -> None:
        job.created, job.taken, job.begun = 100.0, 100.01, 100.03
        if first is not None:
            job.piece(first)
        job.end(reply)

    return behaviour


@pytest.mark.parametrize("path", ["/predictions/m", "/explanations/m", "/m/predict", "/v2/models/m/infer"])
async def test_a_prediction_tells_its_times(timed: Running, path: str) -> None:
    timed.models.later(answered(Reply(1, b"{}", handler_seconds=0.0645)))
    client = await timed.connect()
    answer = await client.ask(post(path, b"x"))
    assert (answer.headers["server-timing"], answer.body) == (ALL, b"{}")


async def test_the_headers_of_the_handler_stay(timed: Running) -> None:
    timed.models.later(answered(Reply(1, b"x", 201, headers=b"dummy\x001", handler_seconds=0.0645)))
    client = await timed.connect()
    answer = await client.ask(post(body=b"x"))
    assert (answer.status, answer.headers["dummy"], answer.headers["server-timing"]) == (201, "1", ALL)


async def test_a_failed_prediction_tells_its_times_too(timed: Running) -> None:
    timed.models.later(answered(Reply(1, b"no", 503, failed=True, handler_seconds=0.0645)))
    client = await timed.connect()
    answer = await client.ask(post(body=b"x"))
    assert (answer.status, answer.headers["server-timing"]) == (503, ALL)


async def test_a_stream_tells_what_came_before_its_first_piece(timed: Running) -> None:
    timed.models.later(answered(Reply(1, b"b", handler_seconds=0.1), first=Reply(1, b"a", more=True)))
    client = await timed.connect()
    answer = await client.ask(post(body=b"x"))
    assert (answer.headers["server-timing"], answer.body) == ("queue;dur=10.000, batch;dur=20.000", b"ab")


async def test_no_time_is_negative(timed: Running) -> None:
    timed.models.later(answered(Reply(1, b"x", handler_seconds=9.0)))
    client = await timed.connect()
    answer = await client.ask(post(body=b"x"))
    assert "transfer;dur=0.000" in answer.headers["server-timing"]


async def test_what_no_worker_answered_has_no_times(timed: Running) -> None:
    timed.models.later(fail(QueueFull("Full.")))
    client = await timed.connect()
    assert "server-timing" not in (await client.ask(post(body=b"x"))).headers
    assert "server-timing" not in (await client.ask(get("/ping"))).headers


async def test_beyond_the_ration_of_a_second_times_are_not_told(timed: Running) -> None:
    client = await timed.connect()

    async def told() -> bool:
        timed.models.later(answered(Reply(1, b"x", handler_seconds=0.0645)))
        return "server-timing" in (await client.ask(post(body=b"x"))).headers

    assert [await told() for _ in range(3)] == [True, True, False]
    timed.pass_time(1)
    assert await told()


async def test_a_ration_of_nothing_turns_it_off(running: Running) -> None:
    running.models.later(answered(Reply(1, b"x", handler_seconds=0.0645)))
    client = await running.connect()
    assert "server-timing" not in (await client.ask(post(body=b"x"))).headers
