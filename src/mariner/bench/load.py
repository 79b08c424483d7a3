"""Sends one request over and over, and keeps how long each answer took.

*Closed*: each connection sends its next request when it has the answer to the last. *Open*: requests fall due at a
steady rate, whatever the server does, and the time of each counts from when it was due. Only then does a server that
stalls show: a closed loop would wait with it and measure nothing meanwhile (coordinated omission).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from mariner.bench.target import Target
from mariner.errors import ConfigurationError

__all__ = ["Load", "Outcomes", "Pace"]

_SWEEP = 0.1  # seconds between two looks at what takes too long
_RETRY = 0.1  # seconds before a connection that failed is tried again


@dataclass(frozen=True, slots=True)
class Pace:
    """How much to send.

    Attributes:
        connections: most that are open at a time.
        seconds: for how long requests are sent.
        requests: how many are sent at most; None for as many as the time allows.
        rate: requests per second that fall due; None for a closed loop.
        timeout: seconds after which an answer is not waited for any longer.
    """

    connections: int = 16
    seconds: float = 10.0
    requests: int | None = None
    rate: float | None = None
    timeout: float = 30.0


@dataclass(slots=True)
class Outcomes:
    """What became of the requests.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each answer with a status below 400.
        statuses: how many answers had which status.
        failures: requests without an answer, by what happened.
        unsent: requests that fell due while every connection was busy until the end.
    """

    seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"), repr=False)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    unsent: int = 0

    def add(self, other: Outcomes) -> None:
        """Takes in those of another run."""
        self.seconds += other.seconds
        self.latencies.extend(other.latencies)
        self.statuses += other.statuses
        self.failures += other.failures
        self.unsent += other.unsent


class Load:
    """One run against one target.

    Args:
        target: what to send.
        pace: how much of it.
        tls: for ``https``.
        on_progress: told every tenth of a second how many answers and failures there are.
    """

    def __init__(
        self,
        target: Target,
        pace: Pace,
        *,
        tls: ssl.SSLContext | None = None,
        on_progress: Callable[[int, int], object] = lambda _answers, _failures: None,
    ) -> None:
        self.request = target.request
        self.outcomes = Outcomes()
        self._target = target
        self._pace = pace
        self._tls = tls if target.tls else None
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._now = time.perf_counter  # the clocks of event loops stand still while callbacks run
        self._left = pace.requests if pace.requests is not None else -1  # below 0: no limit
        self._answers = 0
        self._ever_connected = False
        self._sending = True
        self._began = self._last = 0.0
        self._busy: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()
        self._due: deque[float] = deque()  # requests that no connection is free for, by when they fell due
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()  # nothing is under way any more

    async def run(self) -> Outcomes:
        """Sends, and waits for what is under way at the end.

        Raises:
            ConfigurationError: nobody listens there.
        """
        pace = self._pace
        first = await self._connect()
        self._ever_connected = True
        self._began = self._last = self._now()
        sweep = asyncio.create_task(self._sweep())
        end = self._loop.call_later(pace.seconds, self._stop)
        arrivals = None
        if pace.rate is None:
            self.ready(first)
            for _ in range(pace.connections - 1):
                self._open()
        else:
            self._idle.append(first)
            arrivals = asyncio.create_task(self._arrive(pace.rate))
        await self._over.wait()
        end.cancel()
        for task in (sweep, arrivals, *self._tasks):
            if task is not None:
                task.cancel()
        for connection in self._idle:
            connection.abort()
        self._on_progress(self._answers, self.outcomes.failures.total())
        self.outcomes.seconds = self._last - self._began
        return self.outcomes

    # -- what connections tell ----------------------------------------------------------------------------------------

    def ready(self, connection: _Connection) -> None:
        """A connection can take a request."""
        if self._due:
            self._send(connection, self._due.popleft())
        elif self._pace.rate is None and self._sending and self._left:
            self._left -= 1
            self._send(connection, self._now())
        else:
            self._idle.append(connection)
            self._check_over()

    def answered(self, connection: _Connection, status: int, since: float) -> None:
        """An answer is complete; the connection tells by itself when it is ready again."""
        self._busy.discard(connection)
        self._last = self._now()
        self._answers += 1
        self.outcomes.statuses[status] += 1
        if status < 400:
            self.outcomes.latencies.append(self._last - since)

    def failed(self, connection: _Connection, why: str) -> None:
        """A request gets no answer."""
        self._busy.discard(connection)
        self._last = self._now()
        self.outcomes.failures[why] += 1

    def lost(self, connection: _Connection) -> None:
        """A connection is gone; another takes its place."""
        if connection in self._idle:
            self._idle.remove(connection)
        if self._wanted:
            self._open()
        else:
            self._check_over()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _send(self, connection: _Connection, since: float) -> None:
        self._busy.add(connection)
        connection.send(since, self._now())

    def _open(self) -> None:
        task = self._loop.create_task(self._open_one())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_one(self) -> None:
        while self._wanted:
            try:
                connection = await self._connect()
            except OSError as error:  # noqa: PERF203 - that is what the loop is for
                self.outcomes.failures[_reason(error)] += 1
                await asyncio.sleep(_RETRY)
            else:
                self.ready(connection)
                return
        self._check_over()

    async def _connect(self) -> _Connection:
        target = self._target
        try:
            async with asyncio.timeout(self._pace.timeout):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self), target.host, target.port, ssl=self._tls
                )
        except OSError as error:
            if not self._ever_connected:
                raise ConfigurationError(
                    f"Nothing can be measured at {target.url}: {_reason(error)}.", hint="Is the server running there?"
                ) from error
            raise
        return connection

    async def _arrive(self, rate: float) -> None:
        """Makes requests fall due; many at once where a timer would be too slow for each."""
        count = 0
        opened = 1
        while self._sending and self._left:
            now = self._now()
            while self._left and (due := self._began + count / rate) <= now:
                count += 1
                self._left -= 1
                if self._idle:
                    self._send(self._idle.popleft(), due)
                    continue
                self._due.append(due)
                if opened < self._pace.connections:
                    opened += 1
                    self._open()
            await asyncio.sleep(max(0.0, self._began + count / rate - self._now()))
        self._sending = False  # what has fallen due is still sent
        self._check_over()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            latest = self._now() - self._pace.timeout
            for connection in list(self._busy):
                if connection.sent < latest:
                    self.failed(connection, "no answer in time")
                    connection.abort()
            self._on_progress(self._answers, self.outcomes.failures.total())

    def _stop(self) -> None:
        """The time is over: what is under way may still end, what no connection was free for is given up."""
        self._sending = False
        self.outcomes.unsent += len(self._due)
        self._due.clear()
        self._check_over()

    def _check_over(self) -> None:
        if not self._busy and not self._wanted:
            self._over.set()

    @property
    def _wanted(self) -> bool:
        """There is something left to send."""
        return bool(self._due or (self._sending and self._left))


class _Connection(asyncio.Protocol):
    """One connection: writes the request, reads the answer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._since = 0.0
        self._waiting = False
        self.sent = 0.0

    def send(self, since: float, now: float) -> None:
        """Sends the request, whose time counts from ``since``."""
        self._since, self.sent, self._waiting = since, now, True
        assert self._transport is not None
        self._transport.write(self._load.request)

    def abort(self) -> None:
        """Gives the connection up; what it waited for has been counted."""
        self._waiting = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._waiting:
                self._load.failed(self, "an answer that is no HTTP")
            self.abort()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or not self._waiting:  # an interim answer, or one that nobody asked for
            return
        self._waiting = False
        self._load.answered(self, status, self._since)
        if self._parser.should_keep_alive():
            self._load.ready(self)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiting:
            self._waiting = False
            self._load.failed(self, "the connection was closed" if exc is None else _reason(exc))
        self._load.lost(self)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
