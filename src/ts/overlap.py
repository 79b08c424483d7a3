"""The loop of a worker whose handler is asynchronous: requests overlap on one event loop.

The event loop is the one that ``initialize`` saw, so that what the handler made there belongs to it. The connection
stays blocking for writes, as in :mod:`ts.worker`; only reads go through the loop.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import TYPE_CHECKING

from ts.wire import Batch, FrameDecoder, FrameKind, WireError, decode_predict

if TYPE_CHECKING:
    from ts.service import Service
    from ts.worker import Outbox

__all__ = ["Overlap"]

RECEIVE_SIZE = 1 << 18  # bytes


class Overlap:
    """Runs each batch as a task of its own until the server closes the connection or SIGTERM asks to stop.

    Args:
        connection: with the server.
        decoder: of what comes from it.
        service: the loaded model.
        outbox: takes the replies.
    """

    def __init__(self, connection: socket.socket, decoder: FrameDecoder, service: Service, outbox: Outbox) -> None:
        self._connection = connection
        self._decoder = decoder
        self._service = service
        self._outbox = outbox
        self._loop = service.open_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._flush_due = False
        self._metrics_timer: asyncio.TimerHandle | None = None

    def run(self) -> None:
        """Serves until the end.

        Raises:
            WireError: what arrives are no frames.
            OSError: the connection is lost.
            SystemExit: the handler wants the process to end.
        """
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._loop.add_reader(self._connection, self._read)
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        try:
            await self._ended
        finally:
            self._loop.remove_reader(self._connection)
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._outbox.flush()

    def _stop(self) -> None:
        """Takes what has arrived, and nothing more."""
        if not self._ended.done():
            self._read()
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _read(self) -> None:
        try:
            received = self._connection.recv(RECEIVE_SIZE, socket.MSG_DONTWAIT)
            if not received:
                self._end(None)
            for frame in self._decoder.feed(received):
                if frame.kind is not FrameKind.PREDICT:
                    raise WireError(f"A loaded worker cannot take frames of kind {frame.kind.name}.")  # noqa: TRY301
                for batch in decode_predict(frame.payload, time.monotonic()):
                    task = self._loop.create_task(self._predict(batch))
                    self._tasks.add(task)  # the event loop alone would not keep it alive
                    task.add_done_callback(self._tasks.discard)
        except BlockingIOError:
            pass
        except (WireError, OSError) as error:
            self._end(error)

    async def _predict(self, batch: Batch) -> None:
        self._outbox.hold(await self._service.beside().predict_async(batch))
        if not self._flush_due:  # what ends in the same turn of the loop leaves in one write
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        try:
            self._outbox.flush()
        except OSError as error:
            self._end(error)
        if self._outbox.metrics_waiting and self._metrics_timer is None:
            self._metrics_timer = self._loop.call_later(max(self._outbox.metrics_due_in(), 0.0), self._flush_metrics)

    def _flush_metrics(self) -> None:
        self._metrics_timer = None
        self._flush()
