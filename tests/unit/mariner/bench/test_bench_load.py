"""A load against small servers of the standard library, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mariner import cli
from mariner.bench.load import Load, Outcomes, Pace
from mariner.bench.target import make_target
from mariner.errors import ConfigurationError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server that calls ``answer`` with the number of each request, counted over all connections."""
    count = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                count += 1
                await answer(count, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"


async def ok(_number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def run(url: str, pace: Pace) -> Outcomes:
    return await Load(make_target(url), pace).run()


async def test_as_many_requests_are_sent_as_were_asked_for() -> None:
    async with serving(ok) as url:
        outcomes = await run(url, Pace(connections=4, requests=100))
    assert (outcomes.statuses, len(outcomes.latencies)) == ({200: 100}, 100)
    assert not outcomes.failures
    assert outcomes.seconds > 0


async def test_statuses_are_counted_and_bad_ones_have_no_time() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if number % 2 else b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, requests=10))
    assert (outcomes.statuses, len(outcomes.latencies)) == ({200: 5, 503: 5}, 5)


async def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    async def answer(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=2, requests=20))
    assert (outcomes.statuses, outcomes.failures) == ({200: 20}, {})


async def test_a_request_whose_connection_is_cut_is_a_failure_and_the_others_go_on() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 3:
            writer.close()
        else:
            writer.write(OK)

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, requests=10))
    assert (outcomes.statuses[200], outcomes.failures) == (9, {"the connection was closed": 1})


@pytest.mark.slow
async def test_an_answer_that_does_not_come_is_waited_for_so_long() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number > 1:
            writer.write(OK)

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, requests=3, timeout=0.1))
    assert (outcomes.statuses[200], outcomes.failures) == (2, {"no answer in time": 1})


async def test_what_is_no_http_is_a_failure() -> None:
    async def answer(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, requests=1))
    assert outcomes.failures == {"an answer that is no HTTP": 1}


async def test_an_interim_answer_is_not_the_answer() -> None:
    async def answer(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, requests=2))
    assert outcomes.statuses == {200: 2}


@pytest.mark.slow
async def test_at_a_steady_rate_the_time_counts_from_when_a_request_was_due() -> None:
    """The third answer is late by 0.2 s; in a closed loop only that one request would be."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 3:
            await asyncio.sleep(0.2)
        writer.write(OK)

    async with serving(answer) as url:
        closed = await run(url, Pace(connections=1, requests=12))
    async with serving(answer) as url:
        steady = await run(url, Pace(connections=1, requests=12, rate=100.0))
    assert sum(time > 0.1 for time in closed.latencies) == 1
    assert sum(time > 0.1 for time in steady.latencies) > 5


@pytest.mark.slow
async def test_what_no_connection_was_free_for_is_counted() -> None:
    async def answer(_number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(OK)

    async with serving(answer) as url:
        outcomes = await run(url, Pace(connections=1, seconds=0.35, rate=100.0))
    assert outcomes.unsent >= 25
    assert outcomes.statuses.total() + outcomes.unsent <= 36


async def test_where_nobody_listens_nothing_is_measured() -> None:
    async with serving(ok) as url:
        pass
    with pytest.raises(ConfigurationError, match=r"Nothing can be measured at .*: the connection was refused"):
        await run(url, Pace(requests=1))


@pytest.mark.slow
def test_the_command_compares_two_urls_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def bad(_number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    async def measure() -> tuple[int, str, str]:
        async with serving(ok) as one, serving(bad) as other:
            words = ["bench", one, other, "-n", "20", "-c", "2", "--warm-up", "0", "--json", str(tmp_path / "out.json")]
            return await asyncio.to_thread(cli.main, words), one, other

    status, one, other = asyncio.run(measure())
    shown = capsys.readouterr().out
    assert status == 1  # the second answers 500
    assert "[A] " + one in shown
    assert "40 answers with status 500" in shown
    targets = json.loads((tmp_path / "out.json").read_text())["targets"]
    assert (targets[one]["good"], targets[other]["good"]) == (40, 0)  # two rounds of 20


def test_the_command_says_what_is_wrong_with_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "ftp://a/"]) == 1
    assert "cannot be measured" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "http://a/", "-c", "0"])
    assert "0 is not above 0" in capsys.readouterr().err
