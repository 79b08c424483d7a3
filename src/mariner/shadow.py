"""A version that is asked what others are asked, to compare its answers: they are counted and go nowhere.

The client's request never waits for it: it is queued first, and answered whatever becomes of its copy. What it costs is
a copy of the body, the work of the shadow's own workers, and nothing at all while no shadow is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mariner.errors import BadRequest, MarinerError
from mariner.jobs import Job, Outcome, Reply, Request, Shared
from mariner.traffic import Shares

__all__ = ["Counts", "Shadow"]

Put = Callable[[Job], None]

LABEL = "shadow"  # of its requests in metrics: they are nobody's


@dataclass(slots=True)
class Counts:
    """What became of the copies.

    Attributes:
        mirrored: the shadow was asked.
        refused: it could not be asked, as its queue was full or it had no worker.
        same: it answered with the same status and the same bytes.
        different: it answered something else.
        failed: it failed where the other version answered.
    """

    mirrored: int = 0
    refused: int = 0
    same: int = 0
    different: int = 0
    failed: int = 0


class Shadow:
    """Sends copies of jobs to a version.

    Args:
        version: its name.
        percentage: of 100 jobs, so many are copied.
        put: queues a job for it.

    Raises:
        BadRequest: the percentage is none.
    """

    def __init__(self, version: str, percentage: object, put: Put) -> None:
        if isinstance(percentage, bool) or not isinstance(percentage, (int, float)) or not 0 <= percentage <= 100:
            raise BadRequest(f"The percentage of the shadow is {percentage!r}.", hint="Give a number from 0 to 100.")
        self.version = version
        self.percentage = percentage
        self.counts = Counts()
        self._put = put
        self._shares = Shares({"": 100 - percentage, version: percentage})

    def behind(self, put: Put) -> Put:
        """Queues jobs where they belong, and copies of some of them here."""

        def put_both(job: Job) -> None:
            put(job)
            if self._shares.pick():
                self._mirror(job)

        return put_both

    def moved(self, version: str, put: Put) -> Shadow:
        """The same shadow after another version has taken its place; the counts go on."""
        new = Shadow(version, self.percentage, put)
        new.counts = self.counts
        return new

    def _mirror(self, job: Job) -> None:
        request = _copy(job)
        if request is None:
            return
        comparison = _Comparison(self.counts)
        copy = Job(
            request, comparison.of_shadow, deadline=job.deadline, created=job.created, label=LABEL, alone=job.alone
        )
        try:
            self._put(copy)
        except MarinerError:
            self.counts.refused += 1
            return
        self.counts.mirrored += 1
        job.overhear(comparison.of_client)


def _copy(job: Job) -> Request | None:
    """The request with bytes of its own; None if its job has ended, and its body with it."""
    parts = []
    for part in job.request.parts:
        if isinstance(part.value, Shared):
            if job.slot is None:
                return None
            parts.append(part._replace(value=bytes(job.slot.view)))
        else:
            parts.append(part._replace(value=bytes(part.value)))
    return job.request._replace(id=f"{job.request.id}.{LABEL}", parts=parts)


class _Comparison:
    """Two answers to one request, in whichever order they come. A client that leaves leaves nothing to compare."""

    __slots__ = ("_client", "_counts", "_shadow")

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._client = _Answer()
        self._shadow = _Answer()

    def of_client(self, outcome: Outcome) -> None:
        self._client.take(outcome)
        self._compare()

    def of_shadow(self, outcome: Outcome) -> None:
        self._shadow.take(outcome)
        self._compare()

    def _compare(self) -> None:
        client, shadow = self._client, self._shadow
        if not (client.complete and shadow.complete):
            return
        if (client.status, client.body) == (shadow.status, shadow.body):
            self._counts.same += 1
        elif shadow.failed and not client.failed:
            self._counts.failed += 1
        else:
            self._counts.different += 1


class _Answer:
    """An answer in pieces."""

    __slots__ = ("body", "complete", "failed", "status")

    def __init__(self) -> None:
        self.body = b""
        self.status = 0
        self.failed = False
        self.complete = False

    def take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reply):
            self.body += outcome.body
            self.status, self.failed, self.complete = outcome.status, outcome.failed, not outcome.more
        else:
            self.body, self.status, self.failed, self.complete = b"", outcome.status, True, True
