"""Continuous batches: the loop on a real pair of sockets in this process; handlers play the server between steps."""

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
from ts.service import Service
from ts.steps import Steps
from ts.wire import (
    Batch,
    FrameDecoder,
    FrameKind,
    Part,
    Reply,
    Request,
    WireError,
    decode_replies,
    encode_json,
    encode_predict,
    pack_headers,
    unpack_headers,
)
from ts.worker import Outbox

Step = Callable[[list[dict[str, Any]], Context], Any]


class Metrics:
    def set_request_ids(self, ids: Any) -> None:
        pass


class Line:
    """The server's end, and what the handler saw."""

    def __init__(self) -> None:
        self.end, self.theirs = socket.socketpair()
        self.seen: list[dict[str, Any]] = []  # by step: request id to data
        self.replies: list[Reply] = []

    def send(self, *names: str, **headers: str) -> None:
        """Requests whose ids and bodies are their names; the job id is the number in the name."""
        packed = pack_headers(headers.items())
        jobs = [(int(name[1:]), Request(name, packed, [Part("body", "text/plain", name.encode())])) for name in names]
        self.end.sendall(b"".join(encode_predict([Batch(job[0], [job]) for job in jobs])))

    def drop(self, *job_ids: int) -> None:
        self.end.sendall(b"".join(encode_json(FrameKind.DROP, list(job_ids))))

    def close(self) -> None:
        self.end.shutdown(socket.SHUT_WR)

    def run(self, handle: Step) -> list[Reply]:
        """Runs the loop until the handler, or the test before, has closed the line; all replies."""

        def look(data: list[dict[str, Any]], context: Context) -> Any:
            assert context.request_ids is not None
            self.seen.append(dict(zip(context.request_ids.values(), data, strict=True)))
            return handle(data, context)

        service = Service(Context("net", "/", None, 8, None, "0", metrics=Metrics()), look, self._piece)
        Steps(self.theirs, lambda: self.theirs.recv(1 << 16), FrameDecoder(), service, Outbox(self.theirs)).run()
        service.close()
        self.theirs.close()
        decoder = FrameDecoder()
        while received := self.end.recv(1 << 16):
            for frame in decoder.feed(received):
                self.replies += decode_replies(frame.payload)
        return self.replies

    def _piece(self, reply: Reply) -> None:
        self.replies.append(reply)


@pytest.fixture
def line() -> Iterator[Line]:
    before = signal.getsignal(signal.SIGTERM)
    line = Line()
    yield line
    line.end.close()
    line.theirs.close()
    signal.signal(signal.SIGTERM, before)


def until(steps: dict[str, int], then: Callable[[int], None] = lambda _: None) -> Step:
    """A handler that finishes each request after so many steps; ``then`` is called in each step with its number."""
    done: dict[str, int] = {}
    count = 0

    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        nonlocal count
        count += 1
        ids = list((context.request_ids or {}).values())
        for id_ in ids:
            done[id_] = done.get(id_, 0) + 1
        context.stopping_criteria = [lambda _, id_=id_: done[id_] >= steps[id_] for id_ in ids]
        then(count)
        return [f"{id_}.{done[id_]}" for id_ in ids]

    return handle


def answer(replies: list[Reply], job_id: int) -> list[tuple[bytes, bool]]:
    return [(bytes(reply.body), reply.more) for reply in replies if reply.job_id == job_id]


def test_a_request_brings_its_data_once_and_stays_until_its_criterion_is_true(line: Line) -> None:
    line.send("r1", "r2")
    line.close()
    replies = line.run(until({"r1": 3, "r2": 1}))
    assert line.seen == [{"r1": {"body": "r1"}, "r2": {"body": "r2"}}, {"r1": {}}, {"r1": {}}]
    assert answer(replies, 1) == [(b"r1.1", True), (b"r1.2", True), (b"r1.3", False)]
    assert answer(replies, 2) == [(b"r2.1", False)]


def test_pieces_say_whether_more_follow(line: Line) -> None:
    line.send("r1")
    line.close()
    replies = line.run(until({"r1": 2}))
    assert [unpack_headers(reply.headers) for reply in replies] == [
        [("ts_stream_next", "true")],
        [("ts_stream_next", "false")],
    ]


def test_headers_of_a_request_are_there_in_each_step(line: Line) -> None:
    seen = []

    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        seen.append(context.get_sequence_id(0))
        context.stopping_criteria = [lambda _: len(seen) == 2]
        return [""]

    line.send("r1", ts_request_sequence_id="s")
    line.close()
    line.run(handle)
    assert seen == ["s", "s"]


def test_a_criterion_that_says_none_makes_a_plain_answer(line: Line) -> None:
    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        context.stopping_criteria = [lambda _: None]
        return ["whole"]

    line.send("r1")
    line.close()
    (reply,) = line.run(handle)
    assert (reply.more, reply.headers) == (False, b"")


@pytest.mark.parametrize("criteria", [None, [], {}])
def test_without_criteria_a_step_is_the_whole_answer(line: Line, criteria: Any) -> None:
    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        context.stopping_criteria = criteria
        context.set_response_header(0, "ts_stream_next", "true")  # this alone keeps nobody
        return ["whole"]

    line.send("r1")
    line.close()
    replies = line.run(handle)
    assert answer(replies, 1) == [(b"whole", False)]
    assert len(line.seen) == 1


def test_criteria_stay_until_the_handler_sets_others(line: Line) -> None:
    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        if len(line.seen) == 1:
            context.stopping_criteria = {0: lambda piece: piece == "2"}
        return [str(len(line.seen))]

    line.send("r1")
    line.close()
    assert answer(line.run(handle), 1) == [(b"1", True), (b"2", False)]


def test_a_request_joins_between_two_steps(line: Line) -> None:
    def then(step: int) -> None:
        if step == 2:
            line.send("r2")
            line.close()

    line.send("r1")
    replies = line.run(until({"r1": 4, "r2": 1}, then))
    assert [list(step) for step in line.seen] == [["r1"], ["r1"], ["r1", "r2"], ["r1"]]
    assert answer(replies, 2) == [(b"r2.1", False)]


def test_a_request_that_nobody_waits_for_leaves(line: Line) -> None:
    def then(step: int) -> None:
        if step == 1:
            line.drop(1, 77)
            line.close()

    line.send("r1", "r2")
    replies = line.run(until({"r1": 99, "r2": 2}, then))
    assert [list(step) for step in line.seen] == [["r1", "r2"], ["r2"]]
    last = [reply for reply in replies if reply.job_id == 1][-1]
    assert (last.more, last.failed) == (False, True)  # the server still needs an end to free the body


def test_the_time_of_a_request_is_that_of_all_its_steps(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(100))
    monkeypatch.setattr("ts.service.time.perf_counter", lambda: float(next(moments)))
    line.send("r1", "r2")
    line.close()
    replies = line.run(until({"r1": 3, "r2": 1}))
    assert [(reply.job_id, reply.handler_seconds) for reply in replies if not reply.more] == [(2, 1.0), (1, 3.0)]


def test_an_exception_ends_what_runs_and_nothing_else(line: Line) -> None:
    working = until({"r3": 1}, lambda _: line.close())

    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        if "r1" in line.seen[-1]:
            line.send("r3")
            raise ValueError("boom")
        return working(data, context)

    line.send("r1", "r2")
    replies = line.run(handle)
    assert [(reply.job_id, reply.status, reply.failed) for reply in replies] == [
        (1, 503, True),
        (2, 503, True),
        (3, 200, False),
    ]


@pytest.mark.parametrize("criteria", [[lambda _: False], {7: lambda _: False}, 3])
def test_criteria_that_do_not_fit_are_an_error_of_the_step(line: Line, criteria: Any) -> None:
    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        context.stopping_criteria = criteria
        return ["", ""]

    line.send("r1", "r2")
    line.close()
    assert [(reply.status, bytes(reply.body)) for reply in line.run(handle)] == [(503, b"Prediction failed")] * 2


def test_a_request_that_fails_by_itself_within_a_step_is_out(line: Line) -> None:
    working = until({"r1": 99, "r2": 2})

    def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        if "r1" in line.seen[-1]:
            send_intermediate_predict_response([None], {0: "r1"}, "no such word", 400, context)
        return working(data, context)

    line.send("r1", "r2")
    line.close()
    replies = line.run(handle)
    assert [list(step) for step in line.seen] == [["r1", "r2"], ["r2"]]
    assert [(bytes(reply.body), reply.status) for reply in replies if reply.job_id == 1] == [(b"no such word", 400)]


@pytest.mark.parametrize("asked", ["describe", "explain"])
def test_what_asks_for_something_else_is_run_alone(line: Line, asked: str) -> None:
    def then(step: int) -> None:
        if step == 1:
            line.send("r2", **{asked: "True"})
            line.close()

    line.send("r1")
    line.run(until({"r1": 2, "r2": 99}, then))
    assert [list(step) for step in line.seen] == [["r1"], ["r2"], ["r1"]]


def test_an_asynchronous_handler_is_called_step_by_step_too(line: Line) -> None:
    working = until({"r1": 2})

    async def handle(data: list[dict[str, Any]], context: Context) -> list[str]:
        await asyncio.sleep(0)
        return working(data, context)

    line.send("r1")
    line.close()
    assert answer(line.run(handle), 1) == [(b"r1.1", True), (b"r1.2", False)]


def test_sigterm_lets_what_has_arrived_come_to_its_end(line: Line) -> None:
    def then(step: int) -> None:
        if step == 1:
            line.send("r2")
            os.kill(os.getpid(), signal.SIGTERM)

    line.send("r1")
    replies = line.run(until({"r1": 2, "r2": 2}, then))
    assert [reply.job_id for reply in replies if not reply.more] == [1, 2]


def test_another_frame_is_an_error(line: Line) -> None:
    line.end.sendall(b"".join(encode_json(FrameKind.STARTED, {})))
    with pytest.raises(WireError, match="cannot take frames of kind STARTED"):
        line.run(until({}))
