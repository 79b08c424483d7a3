"""What becomes of the requests that a worker had when it died: which wait, which run again, which are answered.

Pure. A batch that killed its worker is run again in two halves, and a half that kills another one request by request.
A batch that raises is halved down to the end (``ts.isolation``), because a further call costs little. Here each failure
costs a worker, whose successor has to load the model: this way one guilty request costs three of them at most, however
large its batch was. Most deaths are nobody's fault, and then two calls answer everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from mariner.jobs import Job, Suspicion

__all__ = ["Triage", "name_requests", "triage"]

log = logging.getLogger(__name__)

NAMED_REQUESTS = 20  # in one line of the log


class Batch(Protocol):
    """What was sent to the worker in one piece."""

    @property
    def size(self) -> int:
        """Jobs that were in it, answered ones included."""


_Batch = TypeVar("_Batch", bound=Batch)


class Triage(NamedTuple):
    """The jobs of a dead worker, each in one list.

    Attributes:
        untouched: the worker had not begun them; they wait again.
        again: it ran them; they run once more, in groups of their own.
        guilty: it was the second worker that they killed, and they were alone; they are answered with an error.
        lost: it ran them, and they do not run again; they are answered with an error, if somebody waits for it.
        suspected: among those that it ran were some that had killed a worker before.
    """

    untouched: list[Job]
    again: list[Job]
    guilty: list[Job]
    lost: list[Job]
    suspected: bool = False

    def tell(self, worker: str) -> None:
        """Writes to the log what the death of that worker means for requests."""
        if ran := [job for job in (*self.again, *self.guilty, *self.lost) if job.wanted]:
            log.warning("%s died while it ran %s.", worker, name_requests(ran))
        if self.again:
            log.info("%s: %d of these run again, apart from all others.", worker, len(self.again))
        if self.untouched:
            log.info("%s had not begun %s: what it leaves waits again.", worker, name_requests(self.untouched))


def triage(
    jobs: Iterable[tuple[Job, _Batch]],
    *,
    began: Callable[[_Batch], bool],
    runs_again: Callable[[_Batch], bool],
) -> Triage:
    """Sorts the unanswered jobs of a worker that died, and puts those that run again into groups.

    Args:
        jobs: with their batches, in the order in which they were sent.
        began: whether the worker had begun a batch.
        runs_again: whether a batch that it had begun may be run again.
    """
    found = Triage([], [], [], [])
    ran: dict[_Batch, list[Job]] = {}
    suspected = False
    for job, batch in jobs:
        begun = began(batch)
        suspects = ran.setdefault(batch, []) if begun else []
        suspected = suspected or (begun and job.suspicion is not None)
        if not job.wanted or job.streaming:  # what went out cannot be taken back
            found.lost.append(job)
        elif not begun:
            found.untouched.append(job)
        elif runs_again(batch):
            suspects.append(job)
        else:
            found.lost.append(job)
    for batch, suspects in ran.items():
        if not suspects:
            continue
        if batch.size > 1 or suspects[0].suspicion is None:
            found.again.extend(_regroup(suspects))
        elif len(ran) == 1:
            found.guilty.extend(suspects)
        else:  # twice beside others: nobody knows which of them it was
            found.lost.extend(suspects)
    return found._replace(suspected=suspected)


def _regroup(jobs: Sequence[Job]) -> Sequence[Job]:
    """Puts the jobs of one batch into groups that share their batches with nobody, in order."""
    for group in _halves(jobs) if jobs[0].suspicion is None else [[job] for job in jobs]:
        suspicion = Suspicion()
        for job in group:
            job.alone, job.suspicion = True, suspicion
    return jobs


def _halves(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    middle = (len(jobs) + 1) // 2
    return [jobs[:middle], jobs[middle:]]


def name_requests(jobs: Sequence[Job]) -> str:
    """Requests by their ids, as many as a line holds."""
    more = f" and {len(jobs) - NAMED_REQUESTS} more" if len(jobs) > NAMED_REQUESTS else ""
    return f"request {', '.join(job.request.id for job in jobs[:NAMED_REQUESTS])}{more}"
