"""Quarantine: requests that have killed two workers are known again and not run for a while.

Pure; the clock is passed in. Nothing is computed while it is empty, and little for a body that differs in length or end
from those it holds. It lives with one version and is empty again when that is loaded anew.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mariner.errors import Quarantined
from mariner.jobs import Job, Part, Shared, unpack_headers

__all__ = ["CAPACITY", "Quarantine"]

log = logging.getLogger(__name__)

CAPACITY = 128  # requests; the oldest leaves for the newest. Each has killed two workers: nobody sees many of them
TAIL = 64  # bytes of a body that are compared before all of it is hashed
_TELLING = frozenset({"explain", "url_path"})  # headers that make the handler do something else with the same body


@dataclass(slots=True)
class _Inmate:
    """A request that is kept out."""

    outline: tuple[int, bytes]
    digest: bytes
    until: float
    death_id: str
    known_again: bool = False


class Quarantine:
    """The requests that one version does not run.

    Args:
        model: how messages call the model.
        seconds: how long each is kept; 0 keeps none.
        clock: the time in seconds.

    Attributes:
        inmates: what is kept out, the one that leaves next first; some may be due to leave. While it is empty, nothing
            needs to be checked.
    """

    def __init__(self, model: str, seconds: float, clock: Callable[[], float]) -> None:
        self._model = model
        self._seconds = seconds
        self._clock = clock
        self.inmates: deque[_Inmate] = deque(maxlen=CAPACITY)
        self._outlines: set[tuple[int, bytes]] = set()

    def add(self, job: Job, death_id: str = "") -> None:
        """Keeps a request out from now on; its body must still be there.

        Args:
            job: it killed two workers.
            death_id: id of the death certificate of the second.
        """
        if self._seconds <= 0:
            return
        outline = _outline(job)
        self.inmates.append(_Inmate(outline, _digest(job), self._clock() + self._seconds, death_id))
        self._outlines.add(outline)
        log.warning(
            "%s: request %s killed two workers. What is identical to it is refused for %g s (quarantine_time).",
            *(self._model, job.request.id, self._seconds),
        )

    def refusal(self, job: Job) -> Quarantined | None:
        """Why a request is not to run: it is identical to one that is kept out. None lets it pass."""
        now = self._clock()
        if self.inmates and self.inmates[0].until <= now:
            self._release(now)
        if _outline(job) not in self._outlines:
            return None
        digest = _digest(job)
        inmate = next((inmate for inmate in self.inmates if inmate.digest == digest), None)
        if inmate is None:
            return None
        if not inmate.known_again:  # one line, however often it comes
            inmate.known_again = True
            log.warning(
                "%s: request %s is refused: it is identical to one that killed two workers.",
                *(self._model, job.request.id),
            )
        seconds = inmate.until - now
        refusal = Quarantined(
            f"{self._model} does not run this request: an identical one killed two workers.",
            hint=f"It may be tried again in {math.ceil(seconds)} s; the server's log names what killed the workers.",
            retry_after=seconds,
        )
        refusal.death_id = inmate.death_id
        return refusal

    def _release(self, now: float) -> None:
        while self.inmates and self.inmates[0].until <= now:
            self.inmates.popleft()
        self._outlines = {inmate.outline for inmate in self.inmates}


def _outline(job: Job) -> tuple[int, bytes]:
    """What is quickly told of a request: the length of its parts together, and how the last one ends."""
    values = [_value(job, part) for part in job.request.parts]
    return sum(map(len, values)), bytes(values[-1][-TAIL:]) if values else b""


def _digest(job: Job) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces(job):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()


def _pieces(job: Job) -> Iterator[bytes | bytearray | memoryview]:
    """What the handler gets to see of a request, ids and other headers excepted."""
    for name, value in unpack_headers(job.request.headers):
        if name.lower() in _TELLING:
            yield f"{name.lower()}: {value}".encode("latin-1")
    for part in job.request.parts:
        yield part.name.encode()
        yield part.content_type.encode("utf-8", "replace")
        yield _value(job, part)


def _value(job: Job, part: Part) -> bytes | bytearray | memoryview:
    """The bytes of a part, wherever they lie."""
    if isinstance(part.value, Shared):
        return job.slot.view if job.slot is not None else b""
    return part.value
