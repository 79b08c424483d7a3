"""What happens to requests that come faster than they can be served: how long one would wait, and what it is told.

Pure: numbers in, numbers and errors out. An estimate only ever refuses a request that would wait behind others: one
that a worker could begin at once is always let through, and measures the model anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from mariner.errors import DeadlineTooShort, Loading, RequestTimeout
from mariner.jobs import Job

__all__ = [
    "MARGIN",
    "Lane",
    "deadline_too_short",
    "expected_wait",
    "loading",
    "no_answer",
    "retry_after",
    "waited_too_long",
]

MARGIN = 1.5
"""Batches that must fit into what is left: the estimate is an average, and half of them take longer."""

LONGEST_RETRY = 60.0  # seconds; no estimate of a queue is worth more
_MORE_TIME = "allow more time (clientTimeoutInMills, X-Request-Timeout-Ms)"


class Lane(Protocol):
    """What is to be known of a worker that is ready."""

    @property
    def idle(self) -> bool:
        """It has nothing to do."""

    @property
    def cost(self) -> float:
        """Seconds per batch; 0 until one has been measured."""

    @property
    def lanes(self) -> int:
        """Batches that it runs at a time."""

    def free_in(self, now: float) -> float:
        """Seconds until it has done what it runs."""


def expected_wait(waiting: int, batch_size: int, workers: Iterable[Lane], now: float) -> tuple[float, float]:
    """Seconds until a request that comes now is begun, and seconds that its batch takes then.

    Args:
        waiting: requests before it.
        batch_size: most requests in a batch.
        workers: those that are ready.
        now: the time on the clock of the workers.

    Returns:
        Zeros if it need not wait, or if a batch has yet to be measured.
    """
    rate, lanes, first = 0.0, 0, math.inf
    for worker in workers:
        if not worker.cost or (worker.idle and not waiting):
            return 0.0, 0.0
        rate += worker.lanes / worker.cost
        lanes += worker.lanes
        first = min(first, worker.free_in(now))
    if not rate:
        return 0.0, 0.0
    return first + waiting // batch_size / rate, lanes / rate


def retry_after(seconds: float) -> float:
    """What a refused client is told to wait: an estimate within bounds."""
    return min(max(seconds, 1.0), LONGEST_RETRY)


def deadline_too_short(model: str, left: float, wait: float, batch: float) -> DeadlineTooShort:
    """The error for a request that would be begun, or answered, too late."""
    return DeadlineTooShort(
        f"{model}: the request would be answered in about {wait + batch:.3f} s, and has {left:.3f} s.",
        hint=f"Retry later, add workers, or {_MORE_TIME}.",
        retry_after=retry_after(wait),
    )


def loading(model: str, seconds: float) -> Loading:
    """The error for a job that has waited for a worker's coming as long as one may."""
    return Loading(
        f'Model "{model}" has no worker to serve inference request yet: it is loading, for {seconds:.0f} s so far.',
        hint="Retry later. The server's log says what the workers are doing.",
        retry_after=retry_after(seconds),  # nobody knows; what has taken long may take as long again
    )


def waited_too_long(model: str, job: Job, now: float) -> RequestTimeout:
    """The error for a job whose turn did not come in time."""
    waited = now - job.created
    return RequestTimeout(
        f"{model}: the request waited {waited:.3f} s, longer than its deadline allows.",
        hint=f"Add workers or {_MORE_TIME}.",
        retry_after=retry_after(waited),  # what waits now takes about as long
    )


def no_answer(model: str, job: Job) -> RequestTimeout:
    """The error for a job whose handler takes too long."""
    allowed = job.deadline - job.created
    error = RequestTimeout(
        f'Model "{model}": no answer within the {allowed:g} s the request had.',
        hint=f"{_MORE_TIME[0].upper()}{_MORE_TIME[1:]} or make the handler faster.",
    )
    error.status = 504
    return error
