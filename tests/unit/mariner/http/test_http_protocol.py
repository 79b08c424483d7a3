"""One connection, looked at from the other end of the socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from typing import cast

import pytest
from conftest import Clock, Running, Start
from http_peer import Client, FakeModelServer, echo, get, hold, post, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mariner.auth import Access, Listener
from mariner.bodies import Arena
from mariner.config import TokenMode
from mariner.http.app import App
from mariner.http.connections import Connections, Limits
from mariner.http.protocol import HttpProtocol
from mariner.jobs import Job, Reply
from mariner.model_server import ModelServer

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
SMALL = Limits(max_request_size=1000, max_header_size=2000, shared_body_threshold=100)
LARGE = b"0123456789abcdef" * 8192  # 128 KiB: over the threshold, more than one read


async def wait_for_connections(running: Running, count: int) -> None:
    await until(lambda: len(running.connections) == count)


# -- ordinary exchanges ----------------------------------------------------------------------------------------------


async def test_a_body_comes_back(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post(body=b"hello"))
    assert (answer.status, answer.phrase, answer.body) == (200, "OK", b"hello")


async def test_every_answer_has_the_common_headers(running: Running) -> None:
    client = await running.connect()
    for request in (post(body=b"x"), get("/nowhere")):
        headers = (await client.ask(request)).headers
        assert UUID4.fullmatch(headers["x-request-id"])
        assert headers["pragma"] == "no-cache"
        assert headers["cache-control"] == "no-cache; no-store, must-revalidate, private"
        assert headers["expires"] == "Thu, 01 Jan 1970 00:00:00 UTC"
        assert headers["connection"] == "keep-alive"


async def test_request_ids_are_fresh_and_never_the_client_s(running: Running) -> None:
    client = await running.connect()
    ids = {(await client.ask(post("/predictions/m", b"", "X-Request-Id: mine"))).headers["x-request-id"] for _ in "ab"}
    assert len(ids) == 2
    assert "mine" not in ids


async def test_the_handler_gets_the_id_of_the_answer(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post(body=b"x"))
    assert running.models.jobs[0].request.id == answer.headers["x-request-id"]


async def test_a_connection_serves_many_requests(running: Running) -> None:
    client = await running.connect()
    for number in range(10):
        assert (await client.ask(post(body=b"%d" % number))).body == b"%d" % number


async def test_errors_leave_the_connection_open(running: Running) -> None:
    client = await running.connect()
    assert (await client.ask(get("/nowhere"))).status == 404
    assert (await client.ask(post(body=b"x"))).status == 200


async def test_connection_close_is_honoured(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post("/predictions/m", b"x", "Connection: close"))
    assert answer.headers["connection"] == "close"
    assert await client.closed()


async def test_nothing_is_answered_after_connection_close(running: Running) -> None:
    client = await running.connect()
    await client.ask(post("/predictions/m", b"x", "Connection: close") + post(body=b"y"))
    assert await client.closed()
    assert len(running.models.jobs) == 1


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close", "close, x", "TE, close"])
async def test_connection_close_is_honoured_however_it_is_written(running: Running, value: str) -> None:
    client = await running.connect()
    answer = await client.ask(post("/predictions/m", b"x", f"Connection: {value}"))
    assert (answer.body, answer.headers["connection"]) == (b"x", "close")
    assert await client.closed()


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/predictions/m", "HTTP://h:80/predictions/m", "https://user@h/predictions/m", "/predictions/%6d"],
)
async def test_targets_may_be_written_in_other_ways(running: Running, target: str) -> None:
    client = await running.connect()
    assert (await client.ask(post(target, b"x"))).body == b"x"
    assert running.models.submitted[0][0] == "m"


async def test_empty_lines_before_a_request_are_skipped(running: Running) -> None:
    client = await running.connect()
    assert (await client.ask(b"\r\n\r\n" + post(body=b"x") + b"\r\n" + post(body=b"y"))).body == b"x"
    assert (await client.answer()).body == b"y"


async def test_the_whole_server_may_be_asked_for_its_options(running: Running) -> None:
    client = await running.connect()
    assert (await client.ask(get("*", method="OPTIONS"))).status == 200
    assert (await client.ask(post(body=b"x"))).body == b"x"


async def test_http_1_0_closes_unless_asked_to_stay(running: Running) -> None:
    client = await running.connect()
    stays = await client.ask(b"POST /predictions/m HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")
    assert (stays.body, stays.headers["connection"]) == (b"x", "keep-alive")
    goes = await client.ask(b"POST /predictions/m HTTP/1.0\r\nContent-Length: 1\r\n\r\ny")
    assert (goes.body, goes.headers["connection"]) == (b"y", "close")
    assert await client.closed()


async def test_head_gets_no_body(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(get("/ping", method="HEAD"), head_only=True)
    assert int(answer.headers["content-length"]) > 0
    assert (await client.ask(post(body=b"next"))).body == b"next"


async def test_an_upgrade_is_declined_and_the_body_still_read(running: Running) -> None:
    client = await running.connect()
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    answers = [await client.ask(post("/predictions/m", body, *upgrade)) for body in (b"", b"abc", LARGE)]
    assert [answer.body for answer in answers] == [b"", b"abc", LARGE]


async def test_an_upgrade_with_chunks_is_declined_and_the_body_still_read(running: Running) -> None:
    client = await running.connect()
    upgrade = ("Transfer-Encoding: chunked", "Connection: Upgrade", "Upgrade: websocket")
    answer = await client.ask(
        get("/predictions/m", *upgrade, method="POST") + b"3\r\nabc\r\n0\r\n\r\n" + post(body=b"n")
    )
    assert answer.body == b"abc"
    assert (await client.answer()).body == b"n"


async def test_any_number_of_upgrades_is_declined(running: Running) -> None:
    client = await running.connect()
    upgrade = get("/ping", "Connection: upgrade", "Upgrade: x")
    count = 60_000 // len(upgrade)  # in one read: more than calls may be nested
    await client.send(upgrade * count + post(body=b"last"))
    assert {(await client.answer()).status for _ in range(count)} == {200}
    assert (await client.answer()).body == b"last"


async def test_what_is_wrong_behind_an_upgrade_is_told_as_it_is(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    upgrade = get("/ping", "Connection: upgrade", "Upgrade: x")
    await client.send(upgrade + get("/predictions/m", "Content-Length: 99999999", method="POST"))
    assert [(await client.answer()).status for _ in "ab"] == [200, 413]
    client = await running.connect()
    await client.send(upgrade + b"NONSENSE\r\n\r\n")
    assert [(await client.answer()).status for _ in "ab"] == [200, 400]
    assert caplog.records == []


async def test_close_outweighs_keep_alive_in_http_1_0(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(b"GET /ping HTTP/1.0\r\nConnection: x\r\nConnection: keep-alive, close\r\n\r\n")
    assert answer.headers["connection"] == "close"
    assert await client.closed()


# -- bodies ----------------------------------------------------------------------------------------------------------


async def test_chunks_are_put_together(running: Running) -> None:
    client = await running.connect()
    head = get("/predictions/m", "Transfer-Encoding: chunked", method="POST")
    answer = await client.ask(head + b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n1\r\nh\r\n0\r\nTrailer: x\r\n\r\n")
    assert answer.body == b"abcdefgh"
    assert ("Trailer", "x") not in running.models.headers
    assert (await client.ask(post(body=b"next"))).body == b"next"


async def test_the_space_behind_a_value_is_none_of_it_where_ever_the_bytes_were_cut(running: Running) -> None:
    client, other = await running.connect(), await running.connect()
    head = get("/predictions/m", "X-Mine: a b", "Transfer-Encoding: chunked ", method="POST")
    for end in (head.index(b"a b") + 2, head.index(b"chunked ") + 8):
        await client.send(head[:end])
        await other.ask(get("/ping"))  # by then the server has read what was sent before
        answer = await client.ask(head[end:] + b"3\r\nabc\r\n0\r\n\r\n")
        assert (answer.status, answer.body) == (200, b"abc")
        assert ("X-Mine", "a b") in running.models.headers


async def test_a_large_body_lies_in_shared_memory(running: Running) -> None:
    kept: list[bool] = []

    def look(job: Job) -> None:
        kept.append(job.slot is not None)
        echo(job)

    running.models.behaviour = look
    client = await running.connect()
    assert (await client.ask(post(body=LARGE))).body == LARGE
    assert kept == [True]


async def test_requests_around_a_large_body_are_not_touched(running: Running) -> None:
    client = await running.connect()
    await client.send(post(body=b"before") + post(body=LARGE) + post(body=b"after"))
    assert [(await client.answer()).body for _ in range(3)] == [b"before", LARGE, b"after"]


async def test_a_large_form_stays_out_of_shared_memory(running: Running) -> None:
    client = await running.connect()
    body = b"a=" + b"x" * len(LARGE)
    await client.ask(post("/predictions/m", body, "Content-Type: application/x-www-form-urlencoded"))
    assert running.models.jobs[0].slot is None
    assert running.models.parts == [("a", "", b"x" * len(LARGE))]


async def test_a_full_arena_is_no_obstacle(running: Running) -> None:
    taken = running.arena.allocate(running.arena.size)
    assert taken is not None
    client = await running.connect()
    assert (await client.ask(post(body=LARGE))).body == LARGE
    taken.release()


async def test_shared_memory_is_freed_when_the_client_goes_half_way(running: Running) -> None:
    client = await running.connect()
    await client.send(post(body=LARGE)[:100_000])
    await until(lambda: running.arena.used)
    await client.close()
    await wait_for_connections(running, 0)
    assert running.arena.used == 0
    assert not running.models.jobs


async def test_shared_memory_is_freed_when_nobody_takes_the_body(running: Running) -> None:
    client = await running.connect()
    assert (await client.ask(post("/nowhere", LARGE))).status == 404
    assert running.arena.used == 0


async def test_expect_100_continue_is_answered_before_the_body(running: Running) -> None:
    client = await running.connect()
    request = post("/predictions/m", b"hello", "Expect: 100-continue")
    assert (await client.ask(request[:-5])).status == 100
    assert (await client.ask(b"hello")).body == b"hello"


async def test_expect_100_continue_works_for_large_bodies(running: Running) -> None:
    client = await running.connect()
    request = post("/predictions/m", LARGE, "Expect: 100-continue")
    assert (await client.ask(request[: -len(LARGE)])).status == 100
    assert (await client.ask(LARGE)).body == LARGE


async def test_an_expectation_of_http_1_0_is_not_heard(running: Running) -> None:
    client = await running.connect()
    request = post("/predictions/m", b"hello", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await client.ask(request)).body == b"hello"


async def test_other_expectations_are_refused(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post("/predictions/m", b"x", "Expect: a-miracle"))
    assert (answer.status, json.loads(answer.body)["type"]) == (417, "BadRequestException")
    assert await client.closed()


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_413_and_the_connection_stays(start: Start) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    assert (await client.ask(post(body=b"x" * 1000))).status == 200
    answer = await client.ask(post(body=b"x" * 1001))
    error = json.loads(answer.body)
    assert (answer.status, error["code"], error["type"]) == (413, 413, "RequestEntityTooLargeException")
    assert (await client.ask(post(body=b"y"))).body == b"y"


async def test_a_body_far_over_the_limit_is_refused_before_it_is_sent(start: Start) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    answer = await client.ask(get("/predictions/m", "Content-Length: 99999999", method="POST"))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert await client.closed()


async def test_the_answer_to_a_refused_body_survives_the_rest_of_the_body(start: Start) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    await client.send(get("/predictions/m", "Content-Length: 9999999", method="POST") + b"x" * 4_000_000)
    assert (await client.answer()).status == 413


async def test_too_large_a_body_is_413_instead_of_100(start: Start) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    request = post("/predictions/m", b"x" * 1001, "Expect: 100-continue")
    assert (await client.ask(request[:-1001])).status == 413


async def test_chunks_over_the_limit_are_413(start: Start) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    await client.send(get("/predictions/m", "Transfer-Encoding: chunked", method="POST"))
    answer = await client.ask(b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n" + b"x" * 501)
    assert answer.status == 413
    assert await client.closed()


@pytest.mark.parametrize(
    "request_",
    [
        get("/predictions/m", "X: " + "x" * 3000),
        get("/predictions/" + "m" * 3000),
        get("/predictions/m", *(f"X{number}: {'x' * 90}" for number in range(30))),
        get("/predictions/m", *(f"X{number}: " for number in range(300))),
        get("/predictions/m", "Transfer-Encoding: chunked") + b"1;" + b"x" * 9000,
        get("/predictions/m", "Transfer-Encoding: chunked") + b"0\r\nTrailer: " + b"x" * 9000,
    ],
    ids=["header", "target", "all headers", "count", "chunk extension", "trailer"],
)
async def test_endless_heads_are_refused(start: Start, request_: bytes) -> None:
    running = await start(limits=SMALL)
    client = await running.connect()
    for position in range(0, len(request_), 500):
        await client.send(request_[position : position + 500])
        await asyncio.sleep(0)
    answer = await client.answer()
    assert (answer.status, json.loads(answer.body)["message"]) == (400, "Invalid HTTP message.")


async def test_one_connection_too_many_is_turned_away(start: Start) -> None:
    running = await start(limits=Limits(max_connections=1))
    first = await running.connect()
    await first.ask(post(body=b"x"))
    second = await running.connect()
    assert (await second.answer()).status == 503
    assert await second.closed()
    assert (await first.ask(post(body=b"y"))).body == b"y"


# -- malformed and hostile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET /ping HTTP/9.9\r\n\r\n",
        b"GET /ping HTTP/0.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"GET /ping HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /ping HTTP/1.1\nHost: a\n\n",
        b"GET /ping HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /ping HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /ping HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
        b"POST /ping HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
        b"POST /ping HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc",
        b"POST /ping HTTP/1.1\r\nContent-Length:\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\n: nameless\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"get /ping HTTP/1.1\r\n\r\n",
        b"GET ping HTTP/1.1\r\n\r\n",
        b"GET /caf\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET /ping\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
)
async def test_what_is_no_http_message_is_400_and_ends_the_connection(running: Running, request_: bytes) -> None:
    client = await running.connect()
    answer = await client.ask(request_ + get("/ping"))
    error = json.loads(answer.body)
    assert (answer.status, error["type"], error["message"]) == (400, "BadRequestException", "Invalid HTTP message.")
    assert answer.headers["connection"] == "close"
    assert await client.closed()
    assert running.models.metrics.statuses == [400]


async def test_answers_due_before_a_malformed_request_are_given(running: Running) -> None:
    client = await running.connect()
    await client.send(post(body=b"good") + b"NONSENSE\r\n\r\n")
    assert (await client.answer()).body == b"good"
    assert (await client.answer()).status == 400


async def test_a_request_after_a_malformed_one_is_never_seen(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"a") + b"NONSENSE\r\n\r\n")
    job = await running.models.job()
    await client.send(post(body=b"smuggled"))
    job.end(Reply(1, b"a"))
    assert [(await client.answer()).status for _ in "ab"] == [200, 400]
    assert await client.closed()
    assert len(running.models.jobs) == 1


# -- pipelining and splitting ----------------------------------------------------------------------------------------


async def test_a_thousand_pipelined_requests_are_answered_in_order(running: Running) -> None:
    client = await running.connect()
    await client.send(b"".join(post(body=b"%d" % number) for number in range(1000)))
    for number in range(1000):
        assert (await client.answer()).body == b"%d" % number


async def test_pipelined_requests_run_one_at_a_time(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(b"".join(post(body=b"%d" % number) for number in range(100)))
    for number in range(100):
        job = await running.models.job()
        assert len(running.models.jobs) == number + 1
        job.end(Reply(1, b"%d" % number))
        assert (await client.answer()).body == b"%d" % number


async def test_a_client_that_pipelines_without_end_is_read_no_further(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    request = post(body=b"x" * 1000)
    sender = asyncio.ensure_future(client.send(request * 20_000))
    await running.models.job()
    connection = running.connection
    await until(lambda: connection._paused)
    queued = len(connection._queue)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(connection._queue) == queued < 200
    assert not sender.done()
    sender.cancel()


async def test_every_split_of_a_request_is_understood(running: Running) -> None:
    client = await running.connect()
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = post("/predictions/m", b"hello", "Content-Type: text/plain")
    for position in range(1, len(request)):
        await client.send(request[:position])
        await asyncio.sleep(0)
        assert (await client.ask(request[position:])).body == b"hello"


class MemoryTransport(asyncio.Transport):
    """Collects what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


STREAM = (
    post(body=b"one")
    + get("/predictions/m", "Transfer-Encoding: chunked", method="PUT")
    + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: t\r\n\r\n"
    + post("/predictions/m", b"L" * 500, "Content-Type: image/png")
    + get("/nowhere")
    + post("/predictions/m", b"u", "Connection: Upgrade", "Upgrade: h2c")
    + post("/predictions/m/1.0/a/b", b"x" * 2000)
    + get("/predictions/m", "X: " + "y" * 300)
    + b"POST /predictions/m HTTP/1.0\r\nContent-Length: 4\r\n\r\nlast"
    + post(body=b"never seen")
)


def answers_to(pieces: list[bytes]) -> tuple[bytes, list[bytes]]:
    models = FakeModelServer()
    arena = Arena(1 << 16)
    app = App(cast("ModelServer", models), Access(TokenMode.AUTO), [Listener.INFERENCE])
    protocol = HttpProtocol(Connections(app, SMALL, arena, Clock()))
    transport = MemoryTransport()
    protocol.connection_made(transport)
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            buffer = protocol.get_buffer(-1)
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            protocol.buffer_updated(size)
            rest = rest[size:]
    protocol.connection_lost(None)
    assert arena.used == 0
    arena.close()
    return re.sub(UUID4.pattern.encode(), b"ID", transport.written), [job.request.headers for job in models.jobs]


WHOLE = answers_to([STREAM])


def test_the_whole_stream_is_answered_as_it_should() -> None:
    written, seen = WHOLE
    assert [int(line.split()[1]) for line in re.findall(rb"HTTP/1.1 \d+ ", written)] == [
        200,
        200,
        200,
        404,
        200,
        413,
        200,
        200,
    ]
    assert len(seen) == 6
    assert written.endswith(b"last")


def test_the_stream_byte_by_byte_gets_the_same_answers() -> None:
    assert answers_to([STREAM[position : position + 1] for position in range(len(STREAM))]) == WHOLE


def test_what_came_before_a_request_in_one_read_does_not_count_against_it() -> None:
    chunked = get("/predictions/m", "Transfer-Encoding: chunked", method="POST")
    written, seen = answers_to([post(body=b"x" * 1000) * 3 + chunked, b"1", b"\r\ny\r\n0\r\n\r\n"])
    assert written.count(b"HTTP/1.1 200 OK") == len(seen) == 4
    assert written.endswith(b"y")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=30))
def test_random_splits_of_the_stream_get_the_same_answers(cuts: list[int]) -> None:
    ends = sorted({*cuts, len(STREAM)})
    assert answers_to([STREAM[start:end] for start, end in zip([0, *ends], ends, strict=False)]) == WHOLE


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(0, len(STREAM)))
def test_rubbish_never_breaks_the_server(rubbish: list[bytes], position: int) -> None:
    answers_to([STREAM[:position], *rubbish, STREAM[position:]])


# -- time limits -----------------------------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed(running: Running) -> None:
    client = await running.connect()
    await client.ask(post(body=b"x"))
    running.pass_time(299)
    assert (await client.ask(post(body=b"x"))).status == 200
    running.pass_time(299)
    assert len(running.connections) == 1
    running.pass_time(2)
    assert await client.closed()


async def test_a_connection_that_never_asks_is_closed(running: Running) -> None:
    client = await running.connect()
    await wait_for_connections(running, 1)
    running.pass_time(31)
    assert await client.closed()


async def test_a_head_that_does_not_end_is_408(running: Running) -> None:
    client = await running.connect()
    await client.ask(post(body=b"x"))
    await client.send(b"GET /ping HTTP/1.1\r\nX-Slow")
    connection = running.connection
    await until(lambda: connection._phase)
    running.pass_time(29)
    assert len(running.connections) == 1
    running.pass_time(2)
    answer = await client.answer()
    assert (answer.status, json.loads(answer.body)["type"]) == (408, "RequestTimeoutException")
    assert await client.closed()


async def test_a_trickling_head_is_408_all_the_same(running: Running) -> None:
    client = await running.connect()
    await client.ask(post(body=b"x"))
    for byte in b"GET /ping HT":
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
        running.pass_time(3)
    assert (await client.answer()).status == 408


@pytest.mark.parametrize("size", [1000, 200_000], ids=["parsed", "past the parser"])
async def test_a_body_that_does_not_end_is_408(running: Running, size: int) -> None:
    client = await running.connect()
    await client.send(post(body=b"x" * size)[:-1])
    await wait_for_connections(running, 1)
    connection = running.connection
    await until(lambda: connection._size == size - 1 or len(connection._target or b"") == 1)
    running.pass_time(59)
    assert len(running.connections) == 1
    running.pass_time(2)
    assert (await client.answer()).status == 408
    assert not running.models.jobs


async def test_a_handler_may_take_longer_than_any_limit_of_the_connection(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    running.pass_time(10_000)
    job.end(Reply(1, b"late"))
    assert (await client.answer()).body == b"late"


async def test_a_refused_client_that_keeps_sending_is_cut(running: Running) -> None:
    client = await running.connect()
    assert (await client.ask(b"NONSENSE\r\n\r\n")).status == 400
    await client.send(b"x" * 1000)
    assert len(running.connections) == 1
    running.pass_time(6)
    await wait_for_connections(running, 0)


async def test_a_client_that_stops_reading_is_cut(running: Running) -> None:
    running.models.behaviour = lambda job: job.end(Reply(1, b"x" * 50_000_000))
    client = await running.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a stream
    await client.send(post(body=b"x"))
    connection = running.connection
    await until(lambda: connection._blocked)
    running.pass_time(1)
    running.pass_time(59)
    assert len(running.connections) == 1
    running.pass_time(2)
    await wait_for_connections(running, 0)


async def test_a_client_that_reads_slowly_is_served(running: Running) -> None:
    running.models.behaviour = lambda job: job.end(Reply(1, b"x" * 50_000_000))
    client = await running.connect()
    await client.send(post(body=b"x"))
    await client.reader.readuntil(b"\r\n\r\n")
    for _ in range(20):
        await client.reader.readexactly(2_000_000)
        running.pass_time(50)
    await client.reader.readexactly(10_000_000)


# -- the client goes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
async def test_work_for_a_client_that_has_gone_is_cancelled(running: Running, reset: bool) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    if reset:
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.close()
    await wait_for_connections(running, 0)
    assert not job.wanted
    job.end(Reply(1, b"late"))
    assert running.models.metrics.statuses == []


async def test_a_client_that_only_finished_sending_gets_every_answer(running: Running) -> None:
    client = await running.connect()
    client.writer.write(post(body=b"a") + post(body=LARGE) + post(body=b"c"))
    client.writer.write_eof()
    answers = [await client.answer() for _ in range(3)]
    assert [answer.body for answer in answers] == [b"a", LARGE, b"c"]
    assert await client.closed()


async def test_a_client_that_finished_sending_while_its_request_runs_gets_the_answer(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"a") + post(body=b"b"))
    job = await running.models.job()
    client.writer.write_eof()
    connection = running.connection
    await until(lambda: connection._half_closed)
    running.pass_time(10_000)
    job.end(Reply(1, b"first"))
    assert (await client.answer()).body == b"first"
    (await running.models.job()).end(Reply(1, b"second"))
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"second", "close")
    assert await client.closed()


@pytest.mark.parametrize(("version", "interim"), [("1.1", True), ("1.0", False)])
async def test_a_client_that_finished_sending_is_asked_once_whether_it_is_there(
    running: Running, version: str, interim: bool
) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    client.writer.write(post(body=b"x").replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
    client.writer.write_eof()
    job = await running.models.job()
    connection = running.connection
    written: list[int] = []
    await until(lambda: connection._half_closed)
    connection._probe()
    connection._leave_if_hung_up()
    running.pass_time(1)
    written.append(connection._written)
    assert bool(written[0]) is interim
    job.end(Reply(1, b"late"))
    if interim:
        assert (await client.answer()).status == 100
    assert (await client.answer()).body == b"late"
    assert await client.closed()


async def test_what_is_complete_is_answered_when_the_rest_does_not_come(running: Running) -> None:
    client = await running.connect()
    client.writer.write(post(body=b"whole") + post(body=LARGE)[:-1])
    client.writer.write_eof()
    assert (await client.answer()).body == b"whole"
    assert await client.closed()
    await wait_for_connections(running, 0)
    assert running.arena.used == 0
    assert len(running.models.jobs) == 1


async def test_requests_queued_behind_a_cancelled_one_are_dropped(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x") + post(body=LARGE[:65_536]))
    await running.models.job()
    await until(lambda: running.arena.used)
    await client.close()
    await wait_for_connections(running, 0)
    assert len(running.models.jobs) == 1
    assert running.arena.used == 0


async def test_an_answered_request_is_not_cancelled_when_the_client_goes(running: Running) -> None:
    cancelled: list[str] = []
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    connection = running.connection
    exchange = connection._active
    assert exchange is not None
    job.end(Reply(1, b"x"))
    exchange.on_cancel = lambda: cancelled.append("x")
    await client.answer()
    await client.close()
    await wait_for_connections(running, 0)
    assert cancelled == []


async def test_cancellation_comes_once(running: Running) -> None:
    cancelled: list[str] = []
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    await running.models.job()
    connection = running.connection
    assert connection._active is not None
    connection._active.on_cancel = lambda: cancelled.append("x")
    connection.eof_received()
    connection.connection_lost(None)
    assert cancelled == ["x"]


# -- streaming -------------------------------------------------------------------------------------------------------


async def test_pieces_become_chunks(running: Running) -> None:
    def behaviour(job: Job) -> None:
        for piece in (b"a", b"bb", b"", b"ccc"):
            job.piece(Reply(1, piece, 201, headers=b"X-A\x00b", more=True))
        job.end(Reply(1, b"d"))

    running.models.behaviour = behaviour
    client = await running.connect()
    answer = await client.ask(post(body=b"x"))
    assert (answer.status, answer.headers["x-a"]) == (201, "b")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.chunks == (b"a", b"bb", b"ccc", b"d")
    assert running.models.metrics.statuses == [201]


async def test_pieces_are_sent_as_they_come(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    job.piece(Reply(1, b"first", more=True))
    assert (await client.reader.readuntil(b"first\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    job.piece(Reply(1, b"second", more=True))
    assert await client.reader.readexactly(11) == b"6\r\nsecond\r\n"
    job.end(Reply(1, b""))
    assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    running.models.behaviour = echo
    assert (await client.ask(post(body=b"next"))).body == b"next"


async def test_http_1_0_gets_a_stream_without_chunks_and_the_connection_closes(running: Running) -> None:
    def behaviour(job: Job) -> None:
        job.piece(Reply(1, b"a", more=True))
        job.end(Reply(1, b"b"))

    running.models.behaviour = behaviour
    client = await running.connect()
    answer = await client.ask(b"GET /predictions/m HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (answer.body, answer.headers["connection"]) == (b"ab", "close")
    assert "transfer-encoding" not in answer.headers


async def test_a_failure_within_a_stream_cuts_the_connection(running: Running) -> None:
    def behaviour(job: Job) -> None:
        job.piece(Reply(1, b"a", more=True))
        job.end(Reply(1, b"Prediction failed", 503, failed=True))

    running.models.behaviour = behaviour
    client = await running.connect()
    await client.send(post(body=b"x"))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.answer()


async def test_a_stream_ends_when_its_reader_is_too_slow(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a stream
    await client.send(post(body=b"x"))
    job = await running.models.job()
    for _ in range(100):
        job.piece(Reply(1, b"x" * 1_000_000, more=True))
        await asyncio.sleep(0)
    await wait_for_connections(running, 0)
    assert not job.wanted


async def test_a_stream_for_a_client_that_has_gone_is_cancelled(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    job.piece(Reply(1, b"x", more=True))
    await client.close()
    await wait_for_connections(running, 0)
    assert not job.wanted


async def test_head_gets_the_head_of_a_stream(running: Running) -> None:
    def behaviour(job: Job) -> None:
        job.piece(Reply(1, b"a", more=True))
        job.end(Reply(1, b"b"))

    running.models.behaviour = behaviour
    client = await running.connect()
    await client.ask(get("/predictions/m", method="HEAD"), head_only=True)
    running.models.behaviour = echo
    assert (await client.ask(post(body=b"next"))).body == b"next"


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_idle_connections_close_when_the_listener_stops(running: Running) -> None:
    client = await running.connect()
    await client.ask(post(body=b"x"))
    running.listener.stop_accepting()
    assert await client.closed()
    assert await running.listener.drain(1)


async def test_the_running_request_is_answered_and_no_other(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x") + post(body=b"y"))
    job = await running.models.job()
    running.listener.stop_accepting()
    assert not await running.listener.drain(0)
    job.end(Reply(1, b"x"))
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"x", "close")
    assert await client.closed()
    assert await running.listener.drain(1)
    assert len(running.models.jobs) == 1


async def test_a_request_that_is_arriving_is_answered(running: Running) -> None:
    client = await running.connect()
    request = post(body=b"hello")
    await client.send(request[:-1])
    await wait_for_connections(running, 1)
    connection = running.connection
    await until(lambda: connection._size == 4)
    running.listener.stop_accepting()
    answer = await client.ask(request[-1:])
    assert (answer.body, answer.headers["connection"]) == (b"hello", "close")


async def test_close_cancels_what_still_runs(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    await running.listener.close()
    assert not job.wanted
    assert await client.closed()


async def test_clients_do_not_disturb_each_other(running: Running) -> None:
    clients: list[Client] = [await running.connect() for _ in range(20)]
    for number, client in enumerate(clients):
        await client.send(post(body=b"%d" % number) * 5)
    for number, client in enumerate(clients):
        assert [(await client.answer()).body for _ in range(5)] == [b"%d" % number] * 5


async def test_who_sends_more_than_its_last_request_gets_the_whole_answer(running: Running) -> None:
    running.models.behaviour = lambda job: job.end(Reply(1, b"x" * 200_000))
    for _ in range(20):
        client = await running.connect()
        last = b"POST /predictions/m HTTP/1.1\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
        client.writer.write(last + b"and so on" * 20_000)
        answer = await client.reader.read()
        assert len(answer.partition(b"\r\n\r\n")[2]) == 200_000
        client.writer.close()
