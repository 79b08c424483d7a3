"""The header ``Server-Timing``: where the time of a prediction went, for the network panel of a browser and for people.

In milliseconds, as the W3C has it: ``queue`` until a worker took the request, ``batch`` until those it had before were
done, ``handler`` in the handler (for the whole batch), ``transfer`` all else: the way there and back, (de)coding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mariner.jobs import Job, Outcome, Reply

if TYPE_CHECKING:
    from mariner.http.exchange import Exchange

__all__ = ["Ration", "TimedDelivery", "Write"]


class Ration:
    """How many more answers may have something costly, of those that a second allows.

    Args:
        per_second: all of them.
    """

    __slots__ = ("left", "per_second")

    def __init__(self, per_second: int) -> None:
        self.left = self.per_second = per_second

    def refill(self) -> None:
        """Another second has begun."""
        self.left = self.per_second


class Write(Protocol):
    """Writes what became of a job."""

    def __call__(self, exchange: Exchange, outcome: Outcome, lines: bytes = b"") -> None:
        """``lines`` are complete header lines that the answer gets besides."""


class TimedDelivery:
    """Delivers the answer to an exchange, and with its head the times.

    Args:
        exchange: the request.
        write: writes the outcome.
        now: the clock that the job is stamped with.

    Attributes:
        job: the request's job, once there is one.
    """

    __slots__ = ("_exchange", "_now", "_write", "job")

    def __init__(self, exchange: Exchange, write: Write, now: Callable[[], float]) -> None:
        self._exchange = exchange
        self._write = write
        self._now = now
        self.job: Job | None = None

    def __call__(self, outcome: Outcome) -> None:
        """Takes a piece of the answer, or its end; see :class:`Job`."""
        lines = b""
        if self.job is not None and isinstance(outcome, Reply) and not self._exchange.streaming:
            lines = _header(self.job, self._now(), outcome)
        self._write(self._exchange, outcome, lines)


def _header(job: Job, now: float, reply: Reply) -> bytes:
    queue = (job.taken - job.created) * 1e3
    batch = max(0.0, job.begun - job.taken) * 1e3
    if reply.more:  # the handler goes on
        return b"server-timing: queue;dur=%.3f, batch;dur=%.3f\r\n" % (queue, batch)
    handler = reply.handler_seconds * 1e3
    transfer = max(0.0, (now - job.created) * 1e3 - queue - batch - handler)
    times = (queue, batch, transfer, handler)
    return b"server-timing: queue;dur=%.3f, batch;dur=%.3f, transfer;dur=%.3f, handler;dur=%.3f\r\n" % times
