"""The connections of one listener: their limits, what they share, and the sweep that ends overdue ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mariner.bodies import Arena
from mariner.errors import MarinerError
from mariner.http.exchange import Exchange, HeaderPairs
from mariner.http.heads import Heads
from mariner.http.timing import Ration
from mariner.logs import AccessLog

__all__ = ["Application", "Connection", "Connections", "Limits"]


_READ_SIZE = 65_536  # what one read may bring; also bounds how many pipelined requests arrive at once


class Application(Protocol):
    """Who answers: one per listener."""

    default_headers: HeaderPairs
    finished: Callable[[int], None]  # told the status of every answer

    def handle(self, exchange: Exchange) -> None:
        """Answers now or later; never raises."""

    def refuse(self, exchange: Exchange, error: MarinerError) -> None:
        """Answers with an error at once; never raises."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask of a listener. Sizes are bytes, times seconds.

    Attributes:
        max_request_size: longest body.
        max_header_size: request line and headers together.
        max_connections: open at the same time; one more is answered 503.
        shared_body_threshold: from this Content-Length on a body is received straight into shared memory.
        header_timeout: for a complete head, from the connection or the request's first byte on.
        body_timeout: between two pieces of a body, and between two pieces that a reader of an answer takes.
        keep_alive_timeout: without a request.
        timed_answers: predictions of each second that say where their time went; the others save the cost.
        access_lines: answers of each second that get a line in the access log; beyond them only errors do.
    """

    max_request_size: int = 6_553_500
    max_header_size: int = 65_536
    max_connections: int = 10_000
    shared_body_threshold: int = 65_536
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    keep_alive_timeout: float = 300.0
    timed_answers: int = 0
    access_lines: int = sys.maxsize


class Connection(Protocol):
    """What all connections of a listener are asked for."""

    def check_deadlines(self, now: float) -> None: ...

    def close_when_idle(self) -> None: ...

    def abort(self) -> None: ...


class Connections:
    """The open connections of one listener, and what they share.

    Args:
        app: gets the requests.
        limits: applied to every connection.
        arena: shared memory for large bodies; None keeps them in this process.
        clock: monotonic seconds; read by :meth:`sweep` only, so deadlines are as exact as sweeps are frequent.
        access_log: told of each answer; None if nobody wants to know.
    """

    def __init__(
        self,
        app: Application,
        limits: Limits,
        arena: Arena | None,
        clock: Callable[[], float],
        access_log: AccessLog | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.arena = arena
        self.access_log = access_log
        self.ration = Ration(limits.timed_answers)
        self.access_lines = Ration(limits.access_lines)
        # One buffer for all: between get_buffer() and buffer_updated() nothing else runs, and the parser copies.
        self.buffer = memoryview(bytearray(_READ_SIZE))
        self.heads = Heads()
        self.now = clock()
        self.closing = False
        self.empty = asyncio.Event()
        self.empty.set()
        self._clock = clock
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        self.empty.clear()

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self.empty.set()

    def sweep(self) -> None:
        """Closes what is overdue."""
        self.now = self._clock()
        self.ration.refill()
        if self.access_log is not None:
            self.access_log.flush()
            if self.access_lines.left <= 0 < self.access_lines.per_second:
                self.access_log.tell_rationed(self.access_lines.per_second)
            self.access_lines.refill()
        for connection in list(self._open):
            connection.check_deadlines(self.now)

    def close_when_idle(self) -> None:
        """Every connection ends after the request it is busy with; idle ones end now."""
        self.closing = True
        for connection in list(self._open):
            connection.close_when_idle()

    def abort(self) -> None:
        """Cuts every connection."""
        for connection in list(self._open):
            connection.abort()
