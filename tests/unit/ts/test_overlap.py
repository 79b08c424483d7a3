"""Calls of an asynchronous handler that overlap, in this process and without a server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ts.context import Context
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.overlap import Overlap
from ts.service import Service
from ts.wire import (
    Batch,
    FrameDecoder,
    FrameKind,
    Load,
    Part,
    Reply,
    Request,
    WireError,
    decode_replies,
    encode_json,
    encode_predict,
    unpack_headers,
)
from ts.worker import Outbox


class Metrics:
    request_ids: Any = None

    def set_request_ids(self, ids: Any) -> None:
        self.request_ids = ids


class Meeting:
    """Nobody goes on before all have come."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._complete = asyncio.Event()

    async def join(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await asyncio.wait_for(self._complete.wait(), 20)


class Scene:
    """A worker's loop on one end of a connection; the test holds the other."""

    def __init__(self) -> None:
        self.connection, self._theirs = socket.socketpair()
        self.outbox = Outbox(self._theirs)

    def replies(
        self, handle: Callable[..., Any], *bodies: bytes, settings: Any = None, hang_up: bool = True
    ) -> dict[bytes, list[Reply]]:
        """Runs the loop over one frame with a batch per body, after which the server hangs up; the replies by body."""
        context = Context("net", "/", None, 1, None, "0", metrics=Metrics())
        context.settings = settings  # type: ignore[attr-defined]
        service = Service(context, handle, self.outbox.send_piece)
        batches = [
            Batch(number, [(100 + number, Request(f"id-{number}", b"", [Part("body", "", body)]))])
            for number, body in enumerate(bodies, 1)
        ]
        self.connection.sendall(b"".join(encode_predict(batches)))
        if hang_up:
            self.connection.shutdown(socket.SHUT_WR)
        try:
            Overlap(self._theirs, FrameDecoder(), service, self.outbox).run()
        finally:
            service.close()
        self._theirs.shutdown(socket.SHUT_WR)
        found: dict[bytes, list[Reply]] = {body: [] for body in bodies}
        decoder = FrameDecoder()
        while received := self.connection.recv(1 << 16):
            for frame in decoder.feed(received):
                assert frame.kind is FrameKind.REPLIES
                for reply in decode_replies(frame.payload):
                    found[bodies[reply.job_id - 101]].append(reply)
        return found

    def close(self) -> None:
        self.connection.close()
        self._theirs.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_calls_overlap_and_each_is_answered_before_the_loop_ends(scene: Scene) -> None:
    meeting = Meeting(3)

    async def handle(data: Any, context: Context) -> Any:
        await meeting.join()
        return [bytes(data[0]["body"]).upper()]

    replies = scene.replies(handle, b"a", b"b", b"c")
    assert {body: [bytes(reply.body) for reply in got] for body, got in replies.items()} == {
        b"a": [b"A"],
        b"b": [b"B"],
        b"c": [b"C"],
    }


def test_an_error_answers_its_own_request(scene: Scene) -> None:
    meeting = Meeting(2)

    async def handle(data: Any, context: Context) -> Any:
        await meeting.join()
        if data[0]["body"] == b"bad":
            raise ValueError
        return ["ok"]

    replies = scene.replies(handle, b"bad", b"good")
    assert [(reply.failed, reply.status) for reply in replies[b"bad"]] == [(True, 503)]
    assert [(reply.failed, bytes(reply.body)) for reply in replies[b"good"]] == [(False, b"ok")]


def test_what_concerns_a_request_is_its_own_and_the_rest_is_shared(scene: Scene) -> None:
    meeting = Meeting(2)
    cache: dict[str, Any] = {}

    async def handle(data: Any, context: Any) -> Any:
        context.set_response_header(0, "X-Id", context.get_request_id())
        context.settings[context.get_request_id()] = context
        await meeting.join()
        assert context.metrics.request_ids == context.request_ids
        return [context.get_request_id()]

    replies = scene.replies(handle, b"a", b"b", settings=cache)
    for body, name in ((b"a", "id-1"), (b"b", "id-2")):
        (reply,) = replies[body]
        assert (bytes(reply.body), unpack_headers(reply.headers)) == (name.encode(), [("X-Id", name)])
    assert sorted(cache) == ["id-1", "id-2"]
    assert cache["id-1"] is not cache["id-2"]


def test_streams_overlap_too(scene: Scene) -> None:
    meetings = [Meeting(2), Meeting(2)]

    async def handle(data: Any, context: Any) -> Any:
        for meeting in meetings:
            await meeting.join()
            send_intermediate_predict_response(["piece"], context.request_ids, "", 200, context)
        return ["end"]

    for got in scene.replies(handle, b"a", b"b").values():
        assert [(bytes(reply.body), reply.more) for reply in got] == [
            (b"piece", True),
            (b"piece", True),
            (b"end", False),
        ]


def test_an_ordinary_function_will_do(scene: Scene) -> None:
    replies = scene.replies(lambda data, _: [data[0]["body"]], b"a", b"b")
    assert [bytes(got[0].body) for got in replies.values()] == [b"a", b"b"]


def test_on_sigterm_what_has_arrived_is_answered(scene: Scene) -> None:
    async def handle(data: Any, context: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        return ["done"]

    replies = scene.replies(handle, b"a", b"b", hang_up=False)
    assert [bytes(got[0].body) for got in replies.values()] == [b"done", b"done"]


def test_a_handler_may_end_the_process(scene: Scene) -> None:
    async def handle(data: Any, context: Any) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        scene.replies(handle, b"a")


def test_a_frame_that_makes_no_sense_ends_the_loop(scene: Scene) -> None:
    scene.connection.sendall(b"".join(encode_json(FrameKind.LOAD, Load("net", "/", "x"))))
    with pytest.raises(WireError, match="LOAD"):
        scene.replies(lambda data, _: data)
