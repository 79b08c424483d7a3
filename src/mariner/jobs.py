"""Job: one request on its way through a queue and a worker to exactly one end.

Re-exports the values of the wire, so that adapters need not know where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from mariner.bodies import Slot
from mariner.errors import MarinerError
from ts.wire import Part, Reply, Request, Sample, Shared, new_part, new_request, pack_headers, unpack_headers

__all__ = [
    "Holder",
    "Job",
    "JobState",
    "Outcome",
    "Part",
    "Reply",
    "Request",
    "Sample",
    "Shared",
    "Suspicion",
    "new_part",
    "new_request",
    "pack_headers",
    "unpack_headers",
]

Outcome = Reply | MarinerError


class JobState(Enum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"  # handed to a worker
    ENDED = "ended"


class Suspicion:
    """What jobs share that run again together, and with no others, because a worker died while it ran them."""

    __slots__ = ()


class Holder(Protocol):
    """Who has a job that runs."""

    def give_up(self, job: Job) -> None:
        """Nobody wants the answer any more; the handler may see it and stop."""


class Job:
    """A request that waits for, or is with, a worker.

    Args:
        request: what the handler is to see.
        deliver: called with each streamed piece and then exactly once with the end: a final ``Reply`` or an error.
            Never called again after :meth:`cancel`.
        deadline: time on the server's clock after which nobody wants the answer; infinity for none.
        created: time of arrival on the server's clock.
        slot: shared memory that holds the body; released when no worker can read it any more.
        label: version that the request named, ``default`` if it named none; for metrics.
        alone: the job shares its batch with no other, except those under the same suspicion.

    Attributes:
        suspicion: a worker died while it ran the job, and it is to run again; None for nearly all.
    """

    __slots__ = (
        "_deliver",
        "alone",
        "begun",
        "created",
        "deadline",
        "holder",
        "label",
        "request",
        "slot",
        "state",
        "streaming",
        "suspicion",
        "taken",
    )

    def __init__(
        self,
        request: Request,
        deliver: Callable[[Outcome], None],
        *,
        deadline: float = math.inf,
        created: float = 0.0,
        slot: Slot | None = None,
        label: str = "default",
        alone: bool = False,
    ) -> None:
        self.request = request
        self.deadline = deadline
        self.created = created
        self.taken = created  # when a worker took it
        self.begun = created  # when the worker came to it, as far as the server can tell
        self.holder: Holder | None = None  # the worker that has it, if it can be told that nobody wants it any more
        self.slot = slot
        self.label = label
        self.alone = alone
        self.suspicion: Suspicion | None = None
        self.state = JobState.WAITING
        self.streaming = False  # a first piece went out: the status line is gone
        self._deliver: Callable[[Outcome], None] | None = deliver

    @property
    def wanted(self) -> bool:
        """Somebody still waits for the answer."""
        return self._deliver is not None

    def overhear(self, listener: Callable[[Outcome], None]) -> None:
        """Lets somebody else hear what is delivered from now on, after the one it is for."""
        deliver = self._deliver
        if deliver is None:
            return

        def both(outcome: Outcome) -> None:
            deliver(outcome)
            listener(outcome)

        self._deliver = both

    def begin(self, now: float, holder: Holder | None = None) -> None:
        """A worker took the job."""
        self.taken = now
        self.holder = holder
        self.state = JobState.RUNNING

    def piece(self, reply: Reply) -> None:
        """Delivers one piece of a streamed answer."""
        self.streaming = True
        if self._deliver is not None:
            self._deliver(reply)

    def end(self, outcome: Outcome) -> None:
        """Delivers the end and frees what the job holds. A second end is a defect and is ignored."""
        deliver, self._deliver = self._deliver, None
        self.state = JobState.ENDED
        if self.slot is not None:
            self.slot.release()
            self.slot = None
        if deliver is not None:
            deliver(outcome)

    def give_up(self, error: MarinerError) -> None:
        """Delivers an error though a worker still has the job, and the body until it is done with it."""
        deliver, self._deliver = self._deliver, None
        self._tell_holder()
        if deliver is not None:
            deliver(error)

    def cancel(self) -> None:
        """Nobody wants the answer any more. A job with a worker keeps its body until the worker is done with it."""
        self._deliver = None
        if self.state is JobState.WAITING:
            self.state = JobState.ENDED
            if self.slot is not None:
                self.slot.release()
                self.slot = None
        else:
            self._tell_holder()

    def _tell_holder(self) -> None:
        if self.state is JobState.RUNNING and self.holder is not None:
            self.holder.give_up(self)
