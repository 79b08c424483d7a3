"""Quarantine: requests that have killed two workers are known again and not run for a while.

Pure; the clock is passed in. Nothing is computed while it is empty, and little for a body that is not as long as one
that it holds. It lives with one version and is empty again when that is loaded anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mariner.errors import Quarantined
from mariner.jobs import Job, Shared, unpack_headers

__all__ = ["CAPACITY", "Quarantine"]

log = logging.getLogger(__name__)

CAPACITY = 128  # requests; the oldest leaves for the newest. Each has killed two workers: nobody sees many of them
_TELLING = frozenset({"explain", "url_path"})  # headers that make the handler do something else with the same body


@dataclass(slots=True)
class _Inmate:
    """A request that is kept out."""

    size: int
    digest: bytes
    until: float
    certificate: str
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
        self._sizes: set[int] = set()

    def add(self, job: Job, certificate: str = "") -> None:
        """Keeps a request out from now on; its body must still be there.

        Args:
            job: it killed two workers.
            certificate: id of the death certificate of the second.
        """
        if self._seconds <= 0:
            return
        size = _size(job)
        self.inmates.append(_Inmate(size, _digest(job), self._clock() + self._seconds, certificate))
        self._sizes.add(size)
        log.warning(
            "%s: request %s killed two workers. What is identical to it is refused for %g s (quarantine_time).",
            *(self._model, job.request.id, self._seconds),
        )

    def check(self, job: Job) -> None:
        """Lets a request pass.

        Raises:
            Quarantined: it is identical to one that is kept out.
        """
        now = self._clock()
        if self.inmates and self.inmates[0].until <= now:
            self._release(now)
        if _size(job) not in self._sizes:
            return
        digest = _digest(job)
        for inmate in self.inmates:
            if inmate.digest == digest:
                self._refuse(inmate, job, inmate.until - now)

    def _refuse(self, inmate: _Inmate, job: Job, seconds: float) -> None:
        if not inmate.known_again:  # one line, however often it comes
            inmate.known_again = True
            log.warning(
                "%s: request %s is refused: it is identical to one that killed two workers.",
                *(self._model, job.request.id),
            )
        raise Quarantined(
            f"{self._model} does not run this request: an identical one killed two workers.",
            hint=f"It may be tried again in {max(seconds, 1.0):.0f} s; the server's log names what killed the workers.",
            retry_after=seconds,
            certificate=inmate.certificate,
        )

    def _release(self, now: float) -> None:
        while self.inmates and self.inmates[0].until <= now:
            self.inmates.popleft()
        self._sizes = {inmate.size for inmate in self.inmates}


def _size(job: Job) -> int:
    """Bytes of the body, wherever they lie."""
    return sum(part.value.size if isinstance(part.value, Shared) else len(part.value) for part in job.request.parts)


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
        if not isinstance(part.value, Shared):
            yield part.value
        elif job.slot is not None:
            yield job.slot.view
