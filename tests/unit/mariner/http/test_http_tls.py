"""One connection with TLS, looked at from the other end of the socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvloop
from conftest import Running, Start
from http_peer import Client, FakeModelServer, echo, get, hold, post, until
from test_http_protocol import LARGE, SMALL, STREAM, UUID4, WHOLE, wait_for_connections

from mariner.address import Address
from mariner.auth import Access, Listener
from mariner.bodies import Arena
from mariner.config import TokenMode
from mariner.http.app import App
from mariner.http.connections import Limits
from mariner.http.listener import HttpListener
from mariner.http.tls import TlsTransport
from mariner.jobs import Job, Reply
from mariner.model_server import ModelServer
from tls_files import Pair


class TlsClient:
    """A client that decides itself which bytes go out when; asyncio's can neither split records nor half-close."""

    def __init__(self, plain: Client, context: ssl.SSLContext) -> None:
        self.plain = plain
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def shake_hands(self) -> None:
        await self._until_done(self.tls.do_handshake)

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self.plain.send(self.outgoing.read())

    async def read(self) -> bytes:
        return cast("bytes", await self._until_done(lambda: self.tls.read(65_536)))

    async def read_all(self) -> bytes:
        """Until the server says goodbye; the connection must not just break."""
        received = b""
        while piece := await self.read():
            received += piece
        return received

    async def say_goodbye(self) -> None:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self.plain.send(self.outgoing.read())

    async def _until_done(self, step: Callable[[], Any]) -> Any:
        while (done := self._attempt(step)) is None:
            await self._flush()
            if data := await self.plain.reader.read(65_536):
                self.incoming.write(data)
            else:
                self.incoming.write_eof()
        await self._flush()
        return done

    def _attempt(self, step: Callable[[], Any]) -> Any:
        try:
            return step() or b""
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    async def _flush(self) -> None:
        if data := self.outgoing.read():
            await self.plain.send(data)


async def connect_plain(running: Running) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", running.listener.address.port))
    running.stack.push_async_callback(client.close)
    return client


async def connect(running: Running) -> TlsClient:
    assert running.client_tls is not None
    client = TlsClient(await connect_plain(running), running.client_tls)
    await client.shake_hands()
    return client


@pytest.fixture
async def running(start: Start, pair: Pair) -> Running:
    """An inference listener with TLS."""
    return await start(pair=pair)


# -- ordinary exchanges ----------------------------------------------------------------------------------------------


async def test_requests_are_answered_on_one_connection(running: Running) -> None:
    client = await running.connect()
    for number in range(10):
        assert (await client.ask(post(body=b"%d" % number))).body == b"%d" % number
    assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_a_large_body_lies_in_shared_memory(running: Running) -> None:
    kept: list[bool] = []

    def look(job: Job) -> None:
        kept.append(job.slot is not None)
        echo(job)

    running.models.behaviour = look
    client = await running.connect()
    await client.send(post(body=b"before") + post(body=LARGE) + post(body=b"after"))
    assert [(await client.answer()).body for _ in range(3)] == [b"before", LARGE, b"after"]
    assert kept == [False, True, False]


async def test_a_long_answer_arrives_whole(running: Running) -> None:
    body = LARGE * 64
    running.models.behaviour = lambda job: job.end(Reply(1, body))
    client = await running.connect()
    assert (await client.ask(post(body=b"x"))).body == body
    assert (await client.ask(post("/predictions/m", b"x", "Connection: close"))).body == body
    assert await client.closed()


async def test_pieces_of_a_stream_are_sent_as_they_come(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    job.piece(Reply(1, b"first", more=True))
    assert (await client.reader.readuntil(b"first\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    job.end(Reply(1, b"second"))
    assert await client.reader.readexactly(16) == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_a_thousand_pipelined_requests_are_answered_in_order(running: Running) -> None:
    client = await running.connect()
    await client.send(b"".join(post(body=b"%d" % number) for number in range(1000)))
    for number in range(1000):
        assert (await client.answer()).body == b"%d" % number


async def test_a_client_that_pipelines_without_end_is_read_no_further(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    sender = asyncio.ensure_future(client.send(post(body=b"x" * 1000) * 20_000))
    job = await running.models.job()
    connection = running.connection
    await until(lambda: connection._paused)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(connection._queue) < 200
    running.models.behaviour = lambda job: job.end(Reply(1, b"y"))
    job.end(Reply(1, b"y"))
    answers = asyncio.ensure_future(read_answers(client, 20_000))
    await sender
    assert await answers == {b"y"}


async def read_answers(client: Client, count: int) -> set[bytes]:
    return {(await client.answer()).body for _ in range(count)}


@pytest.mark.parametrize("size", [1, 7, 1000], ids=str)
async def test_records_may_be_cut_anywhere(start: Start, pair: Pair, size: int) -> None:
    running = await start(pair=pair, limits=SMALL)
    client = await connect(running)
    client.tls.write(STREAM[: len(STREAM) // 2])
    client.tls.write(STREAM[len(STREAM) // 2 :])
    data = client.outgoing.read()
    for position in range(0, len(data), size):
        await client.plain.send(data[position : position + size])
        await asyncio.sleep(0)
    received = re.sub(UUID4.pattern.encode(), b"ID", await client.read_all())
    assert received == WHOLE[0]


# -- what is no TLS --------------------------------------------------------------------------------------------------


async def test_plain_http_is_refused_as_torchserve_does(running: Running) -> None:
    client = await connect_plain(running)
    answer = await client.ask(post(body=b"x"))
    assert (answer.status, answer.headers["content-type"]) == (403, "application/json")
    assert json.loads(answer.body) == {"status": "This TorchServe instance only accepts HTTPS requests"}
    assert await client.closed()
    assert running.models.jobs == []


async def test_the_refusal_survives_the_rest_of_the_body(running: Running) -> None:
    client = await connect_plain(running)
    await client.send(post(body=b"x" * 4_000_000))
    assert (await client.answer()).status == 403


async def test_what_is_neither_ends_the_connection_and_nothing_else(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    good = await running.connect()
    for rubbish in (b"\x16\x03\x01\x00\x05rubbish", b"\x16" * 100, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
        client = await connect_plain(running)
        await client.send(rubbish)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.reader.readexactly(1000)
    await wait_for_connections(running, 1)
    assert (await good.ask(post(body=b"x"))).body == b"x"
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_a_broken_record_ends_the_connection(running: Running) -> None:
    running.models.behaviour = hold
    client = await connect(running)
    await client.send(post(body=b"x"))
    job = await running.models.job()
    client.tls.write(post(body=b"y"))
    data = client.outgoing.read()
    await client.plain.send(data[:-1] + bytes([data[-1] ^ 1]))
    await wait_for_connections(running, 0)
    assert not job.wanted


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100], ids=["nothing", "one byte", "half a hello"])
async def test_a_handshake_that_does_not_end_is_cut(running: Running, pair: Pair, size: int) -> None:
    client = TlsClient(await connect_plain(running), pair.client_context())
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.plain.send(client.outgoing.read()[:size])
    await wait_for_connections(running, 1)
    running.pass_time(29)
    assert len(running.connections) == 1
    running.pass_time(2)
    assert await client.plain.closed()
    await wait_for_connections(running, 0)


async def test_handshakes_count_as_connections(start: Start, pair: Pair) -> None:
    running = await start(pair=pair, limits=Limits(max_connections=2))
    first = await running.connect()
    await connect_plain(running)
    await wait_for_connections(running, 2)
    third = await connect_plain(running)
    assert await third.closed()
    assert (await first.ask(post(body=b"x"))).body == b"x"


async def test_bodies_and_heads_over_the_limit_are_refused(start: Start, pair: Pair) -> None:
    running = await start(pair=pair, limits=SMALL)
    client = await connect(running)
    await client.send(get("/predictions/m", "Content-Length: 9999999", method="POST") + b"x" * 400_000)
    assert (await client.read()).startswith(b"HTTP/1.1 413 ")
    client = await connect(running)
    await client.send(get("/predictions/m", "X: " + "x" * 3000))
    assert (await client.read_all()).startswith(b"HTTP/1.1 400 ")


async def test_a_head_that_does_not_end_is_408(running: Running) -> None:
    client = await running.connect()
    await client.send(b"GET /ping HT")
    connection = running.connection
    await until(lambda: connection._phase)
    running.pass_time(31)
    assert (await client.answer()).status == 408
    assert await client.closed()


async def test_a_client_that_stops_reading_is_cut(running: Running) -> None:
    running.models.behaviour = lambda job: job.end(Reply(1, b"x" * 16_000_000))
    client = await connect(running)
    await client.send(post(body=b"x"))
    connection = running.connection
    await until(lambda: connection._blocked)
    running.pass_time(1)
    running.pass_time(59)
    assert len(running.connections) == 1
    running.pass_time(2)
    await wait_for_connections(running, 0)


# -- ending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_tls", [True, False], ids=["close_notify", "FIN"])
async def test_a_client_that_only_finished_sending_gets_its_answers(running: Running, in_tls: bool) -> None:
    running.models.behaviour = hold
    client = await connect(running)
    await client.send(post(body=b"a") + post(body=b"b"))
    job = await running.models.job()
    if in_tls:
        await client.say_goodbye()
    else:
        client.plain.writer.write_eof()
    connection = running.connection
    await until(lambda: connection._half_closed)
    job.end(Reply(1, b"first"))
    (await running.models.job()).end(Reply(1, b"second"))
    received = await client.read_all()
    assert [piece.split(b" ")[0] for piece in received.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]
    assert received.endswith(b"second")
    await wait_for_connections(running, 0)


async def test_the_end_of_a_connection_comes_after_what_was_received_before(running: Running) -> None:
    client = await connect(running)
    transport = running.connection._transport
    assert isinstance(transport, TlsTransport)
    transport._paused = True  # of the two event loops, one hands on the end before a paused reader is called again
    await client.send(post(body=b"x"))
    client.plain.writer.write_eof()
    await until(lambda: transport._eof)
    assert not running.models.jobs
    transport.resume_reading()
    assert (await client.read_all()).endswith(b"\r\n\r\nx")


async def test_work_for_a_client_that_has_gone_is_cancelled(running: Running) -> None:
    running.models.behaviour = hold
    client = await connect(running)
    await client.send(post(body=b"x"))
    job = await running.models.job()
    await client.say_goodbye()
    await client.plain.close()
    await wait_for_connections(running, 0)
    assert not job.wanted


async def test_idle_connections_and_handshakes_close_when_the_listener_stops(running: Running) -> None:
    client = await connect(running)
    await client.send(post(body=b"x"))
    assert (await client.read()).startswith(b"HTTP/1.1 200 ")
    waiting = await connect_plain(running)
    await wait_for_connections(running, 2)
    running.listener.stop_accepting()
    assert await client.read() == b""
    assert await waiting.closed()
    assert await running.listener.drain(1)


async def test_the_running_request_is_answered_when_the_listener_stops(running: Running) -> None:
    running.models.behaviour = hold
    client = await running.connect()
    await client.send(post(body=b"x"))
    job = await running.models.job()
    running.listener.stop_accepting()
    assert not await running.listener.drain(0)
    job.end(Reply(1, b"x"))
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"x", "close")
    assert await client.closed()
    assert await running.listener.drain(1)


# -- either event loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_ordinary_client_is_served_on_either_event_loop(pair: Pair, new_loop: Callable[[], Any]) -> None:
    def talk(port: int) -> list[bool]:
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=pair.client_context())
        same = []
        for size in (0, 1, 65_536, 3_000_000):
            body = b"\xff" * size
            connection.request("POST", "/predictions/m", body=body)
            same.append(connection.getresponse().read() == body)
        connection.close()
        return same

    def ask_and_finish(port: int) -> bytes:
        with (
            socket.create_connection(("localhost", port), timeout=10) as plain,
            pair.client_context().wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(post(body=b"x"))
            socket.socket.shutdown(client, socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65_536), b""))

    async def serve() -> None:
        arena = Arena(1 << 22)
        app = App(cast("ModelServer", FakeModelServer()), Access(TokenMode.AUTO), [Listener.INFERENCE])
        context = pair.server_context()
        served = HttpListener(Address.parse("https://localhost:0"), app, arena=arena, tls=context)
        await served.start()
        assert await asyncio.to_thread(talk, served.address.port) == [True] * 4
        assert (await asyncio.to_thread(ask_and_finish, served.address.port)).endswith(b"\r\n\r\nx")
        await served.close()
        assert arena.used == 0
        arena.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())
