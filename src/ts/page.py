"""The page of memory that the server and one worker share beside their connection; standard library only.

The worker notes the batch it runs, readable after a ``kill -9``. The server notes jobs that nobody wants any more,
which the worker sees in the midst of a batch, though it reads no frames then. Each side writes its own cells only, each
an aligned word: neither ever sees half of a number, and neither waits for the other.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ts.wire import Request

__all__ = ["PAGE_BYTES", "Page"]

_NEVER = math.inf
_NOTHING: frozenset[int] = frozenset()
_RUNNING, _END = 0, 8  # cells; 64 bytes apart: a store of one side does not slow the other's next look
_FIRST = 16  # of the cells that hold ids of jobs, each greater by one: memory begins as zeros
_SLOTS = 4096  # jobs that a worker can hold under the longest window; a power of two
PAGE_BYTES = (_FIRST + _SLOTS) * 8
"""Size of the memory. Pages that nobody writes to cost nothing."""


class Page:
    """What one side sees of the page.

    A job that is given up has a cell by its id. Another one that falls on the same cell takes it: then the first runs
    in vain, as it would have without the page. Ids are never used twice, so nothing has to be wiped.

    Args:
        memory: the shared memory, of ``PAGE_BYTES``; None for memory of its own.
    """

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self._memory = memory
        self._cells = memoryview(bytearray(PAGE_BYTES) if memory is None else memory)[:PAGE_BYTES].cast("Q")

    @property
    def running(self) -> int:
        """The id of the batch that runs, 0 for none."""
        return self._cells[_RUNNING]

    @running.setter
    def running(self, batch_id: int) -> None:
        self._cells[_RUNNING] = batch_id

    def give_up(self, job_id: int) -> None:
        """Nobody wants the answer to this job any more."""
        cells = self._cells
        cells[_FIRST + job_id % _SLOTS] = job_id + 1
        cells[_END] = max(cells[_END], job_id + 1)

    def given_up(self, job_id: int) -> bool:
        """Nobody wants the answer to this job."""
        return self._cells[_FIRST + job_id % _SLOTS] == job_id + 1

    def stale(self, jobs: Sequence[tuple[int, Request]]) -> AbstractSet[int]:
        """The ids of those jobs of a batch that nobody wants: given up, or past their deadline.

        Costs next to nothing where nobody has given up anything and no job has a deadline.
        """
        if jobs and jobs[0][0] >= self._cells[_END]:  # ids grow: nothing of this batch was given up
            for _, request in jobs:
                if request.deadline != _NEVER:
                    break
            else:
                return _NOTHING
        now = time.monotonic()
        return {job_id for job_id, request in jobs if request.deadline <= now or self.given_up(job_id)}

    def close(self) -> None:
        """Unmaps the memory."""
        self._cells.release()
        if self._memory is not None:
            self._memory.close()
