"""The loop of a worker whose handler is called step by step: continuous batching.

Each step is one call of the handler with every request that runs. What it returns are pieces of the answers, and its
``context.stopping_criteria`` say whose answer is complete. Requests join and leave between two steps.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ts.wire import Batch, Frame, FrameDecoder, FrameKind, Reply, Request, WireError, decode_predict, unpack_headers

if TYPE_CHECKING:
    from ts.service import Service
    from ts.wire import Buffer
    from ts.worker import Outbox

__all__ = ["Steps"]

RECEIVE_SIZE = 1 << 18  # bytes


class Steps:
    """Runs all requests together until the server closes the connection or SIGTERM asks to stop; what runs is finished.

    Args:
        connection: with the server.
        receive: waits for bytes while nothing runs; nothing at the end.
        decoder: of what comes from the server.
        service: the loaded model.
        outbox: takes the replies.
    """

    def __init__(
        self,
        connection: socket.socket,
        receive: Callable[[], Buffer | None],
        decoder: FrameDecoder,
        service: Service,
        outbox: Outbox,
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._decoder = decoder
        self._service = service
        self._outbox = outbox
        self._open = True
        self._running: dict[int, Request] = {}  # by job id, in the order in which they joined
        self._seconds: dict[int, float] = {}  # that the handler spent on each of them

    def run(self) -> None:
        """Serves until the end.

        Raises:
            WireError: what arrives are no frames.
            OSError: the connection is lost.
            SystemExit: the handler wants the process to end.
        """
        signal.signal(signal.SIGTERM, self._stop)
        while self._open or self._running:
            if self._open:
                self._read()
            if self._running:
                self._step()
            self._outbox.flush()

    def _stop(self, *_: Any) -> None:
        """What has arrived is still read; behind it is the end."""
        self._connection.shutdown(socket.SHUT_RD)

    def _read(self) -> None:
        try:
            received = self._look() if self._running else self._receive()
        except BlockingIOError:
            return
        if not received:
            self._open = False
            return
        for frame in self._decoder.feed(received):
            self._take(frame)

    def _look(self) -> bytes:
        return self._connection.recv(RECEIVE_SIZE, socket.MSG_DONTWAIT)

    def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.DROP:
            for job_id in frame.json():
                if self._running.pop(job_id, None) is not None:
                    self._end(Reply(job_id, b"Nobody waits for the answer any more.", 499, failed=True))
            return
        if frame.kind is not FrameKind.PREDICT:
            raise WireError(f"A loaded worker cannot take frames of kind {frame.kind.name}.")
        for batch in decode_predict(frame.payload, time.monotonic()):
            for job_id, request in batch.jobs:
                if _is_asked_alone(request):
                    self._outbox.hold(self._service.predict(Batch(batch.id, [(job_id, request)])))
                else:
                    self._running[job_id] = request
                    self._seconds[job_id] = 0.0

    def _step(self) -> None:
        jobs = list(self._running.items())
        replies = {reply.job_id: reply for reply in self._service.step(jobs)}
        for job_id, request in jobs:
            reply = replies.get(job_id)
            if reply is not None and reply.more:
                # The handler has seen the body; from now on it knows the request by its id.
                self._running[job_id] = request._replace(parts=())
                self._seconds[job_id] += reply.handler_seconds
                self._outbox.hold([reply])
                continue
            del self._running[job_id]
            if reply is None:  # its answer failed within the step, and said so
                del self._seconds[job_id]
            else:
                self._end(reply)

    def _end(self, reply: Reply) -> None:
        seconds = self._seconds.pop(reply.job_id) + reply.handler_seconds
        self._outbox.hold([reply._replace(handler_seconds=seconds)])


def _is_asked_alone(request: Request) -> bool:
    """To describe the model, or to explain: handlers look at the first request to see what is asked of them."""
    return any(
        name.lower() in {"describe", "explain"} and value == "True" for name, value in unpack_headers(request.headers)
    )
