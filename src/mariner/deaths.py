"""Death certificates: what is known of the end of a worker, and what it died of."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from mariner.causes import Cause, Ending, name_cause, signal_name
from mariner.engines import Exit
from mariner.errors import MarinerError, ServiceUnavailable
from mariner.jobs import Job, Shared
from mariner.logs import BLOCK
from mariner.tracebacks import Raised
from ts.wire import Load

__all__ = [
    "Death",
    "DeathCertificate",
    "DeathRegister",
    "HeldRequest",
    "blame",
    "describe_death",
    "issue",
    "log_block",
    "log_death",
]

logger = logging.getLogger(__name__)

KEPT = 20  # certificates of one version
KEPT_VERSIONS = 64  # with a certificate; whoever registers what fails by ever new names fills no memory
REQUESTS = 50  # of one certificate
LINE_LENGTH = 500  # characters of a line of standard error; the list of extension modules alone has thousands
MIB = 1 << 20

_E = TypeVar("_E", bound=MarinerError)


class Death(Exception):
    """The process of a worker ended, or never came to life."""

    def __init__(self, message: str, *, loaded: bool, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.loaded = loaded
        self.out_of_memory = out_of_memory


class HeldRequest(NamedTuple):
    """A request that the worker had when it died.

    Attributes:
        id: its ``x-request-id``.
        size: bytes of its parameters.
        running: the handler had it; else it waited in the worker.
    """

    id: str
    size: int
    running: bool

    @classmethod
    def of(cls, job: Job, *, running: bool) -> HeldRequest:
        """A job of the worker."""
        values = (part.value for part in job.request.parts)
        size = sum(value.size if isinstance(value, Shared) else len(value) for value in values)
        return cls(job.request.id, size, running)


@dataclass(frozen=True, slots=True)
class DeathCertificate:
    """The end of one worker.

    Attributes:
        id: names the certificate in answers and in the log.
        time: of the death, in seconds since the epoch.
        model: name of the model.
        version: its version.
        worker: name of the worker, ``W-9000-digits_1.0``.
        worker_id: its number.
        pid: of the process, 0 if there was none.
        state: what it was doing, a value of :class:`mariner.lifecycle.State`.
        uptime: seconds it had lived.
        cause: what it died of.
        summary: the same in words, for everybody: no path of this machine is in it.
        exit: how the process ended: code, last lines of standard error, memory, out-of-memory kills.
        raised: the exception, or the line that was running; its message may name paths.
        gpu: index of its GPU, None on the CPU.
        requests: what it had, the running ones first; :data:`REQUESTS` at most.
        more_requests: how many it had besides.
    """

    id: str
    time: float
    model: str
    version: str
    worker: str
    worker_id: int
    pid: int
    state: str
    uptime: float
    cause: Cause
    summary: str
    exit: Exit = field(repr=False)
    raised: Raised
    gpu: int | None = None
    requests: tuple[HeldRequest, ...] = ()
    more_requests: int = 0

    @property
    def signal(self) -> str:
        """Name of the signal that ended it, "" if none did."""
        return signal_name(self.exit.code)


# -- the certificate ---------------------------------------------------------------------------------------------------


def issue(
    exit_: Exit,
    ending: Ending,
    load: Load,
    requests: Iterable[HeldRequest],
    *,
    loaded: bool,
    **known: Any,
) -> DeathCertificate:
    """The certificate of a worker that has just died.

    Args:
        exit_: how its process ended.
        ending: what was known before.
        load: what the worker had to load.
        requests: what it had.
        loaded: the model had been loaded.
        known: the other attributes of the certificate.
    """
    held = sorted(requests, key=lambda request: not request.running)
    roots = (os.path.realpath(load.model_dir), load.model_dir)
    verdict = name_cause(exit_, ending, roots=roots, loaded=loaded)
    return DeathCertificate(
        id=uuid.uuid4().hex[:12],
        time=time.time(),
        model=load.model_name,
        version=load.model_version,
        gpu=load.gpu_id,
        cause=verdict.cause,
        summary=verdict.summary,
        exit=replace(exit_, last_lines=tuple(line[:LINE_LENGTH] for line in exit_.last_lines)),
        raised=verdict.raised,
        requests=tuple(held[:REQUESTS]),
        more_requests=len(held[REQUESTS:]),
        **known,
    )


def blame(error: _E, certificate: DeathCertificate | None) -> _E:
    """Names the death that an error is about: its certificate, and its cause; a refusal has a reason of its own."""
    if certificate is None:
        return error
    error.death_id = certificate.id
    if isinstance(error, ServiceUnavailable):
        error.hint = f"The last worker: {certificate.summary}. {error.hint}"
    else:
        error.reason = certificate.cause.value
    return error


class DeathRegister:
    """The latest certificates of each version; they stay when the version goes."""

    def __init__(self) -> None:
        self._deaths: dict[tuple[str, str], deque[DeathCertificate]] = {}

    def add(self, certificate: DeathCertificate) -> None:
        """Takes a certificate."""
        key = certificate.model, certificate.version
        kept = self._deaths.pop(key, None) or deque[DeathCertificate](maxlen=KEPT)
        kept.appendleft(certificate)
        self._deaths[key] = kept  # the last to go
        if len(self._deaths) > KEPT_VERSIONS:
            del self._deaths[next(iter(self._deaths))]

    def of(self, model: str, version: str) -> Sequence[DeathCertificate]:
        """The certificates of a version, latest first."""
        return tuple(self._deaths.get((model, version), ()))

    def latest_version(self, model: str) -> str | None:
        """The version of a model that died last, None if none did."""
        return next((version for name, version in reversed(self._deaths) if name == model), None)


# -- how it is shown ---------------------------------------------------------------------------------------------------


def describe_death(certificate: DeathCertificate, *, brief: bool = False) -> dict[str, Any]:
    """A certificate as JSON, for those who run the server.

    Args:
        certificate: what is shown.
        brief: without the lines of standard error and the curve of the memory.
    """
    raised, exit_ = certificate.raised, certificate.exit
    moment = datetime.fromtimestamp(certificate.time, UTC)
    shown: dict[str, Any] = {
        "id": certificate.id,
        "time": moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z",
        "workerId": str(certificate.worker_id),
        "pid": certificate.pid,
        "workerState": certificate.state,
        "uptimeSeconds": round(certificate.uptime, 3),
        "cause": certificate.cause.value,
        "summary": certificate.summary,
    }
    if exit_.code is not None and exit_.code >= 0:
        shown["exitCode"] = exit_.code
    if certificate.signal:
        shown["signal"] = certificate.signal
    if raised.type:
        shown["exception"] = {"type": raised.type, "message": raised.message}
    if raised.file:
        shown["location"] = {"file": raised.file, "line": raised.line, "function": raised.function}
    if certificate.gpu is not None:
        shown["gpu"] = certificate.gpu
    if exit_.oom_kills is not None:
        shown["oomKills"] = exit_.oom_kills
    shown["requests"] = [request._asdict() for request in certificate.requests]
    if certificate.more_requests:
        shown["moreRequests"] = certificate.more_requests
    if not brief:
        shown["memory"] = [{"secondsBefore": round(age, 1), "bytes": size} for age, size in exit_.memory]
        shown["stderr"] = list(exit_.last_lines)
    return shown


def log_death(certificate: DeathCertificate) -> None:
    """Writes a certificate into the log: one record, of several lines where lines are written for people."""
    described = {"model": certificate.model, "version": certificate.version} | describe_death(certificate)
    logger.error(
        "%s died (%s): %s. Death certificate %s:",
        *(certificate.worker, certificate.cause.value, certificate.summary, certificate.id),
        extra={BLOCK: log_block(certificate), "death": described},
    )


def log_block(certificate: DeathCertificate) -> str:
    """A certificate as lines of the log, indented."""
    raised, exit_ = certificate.raised, certificate.exit
    rows = [
        ("process", f"{certificate.pid}, {certificate.state}, lived {certificate.uptime:.1f} s"),
        ("exit", certificate.signal or ("unknown" if exit_.code is None else f"code {exit_.code}")),
    ]
    if raised.type:
        rows.append(("exception", f"{raised.type}: {raised.message}"))
    if raised.place:
        rows.append(("location", f"{raised.place} in {raised.function}".removesuffix(" in ")))
    if certificate.gpu is not None:
        rows.append(("gpu", str(certificate.gpu)))
    if exit_.oom_kills is not None:
        rows.append(("oom kills", str(exit_.oom_kills)))
    if certificate.requests:
        more = f", and {certificate.more_requests} more" if certificate.more_requests else ""
        rows.append(("requests", ", ".join(map(_request_words, certificate.requests)) + more))
    if exit_.memory:
        rows.append(("memory", _curve_words(exit_.memory)))
    text = [f"  {name:<10}{value}" for name, value in rows]
    if exit_.last_lines:
        text += ["  stderr", *(f"    {line}" for line in exit_.last_lines)]
    return "\n".join(text)


def _request_words(request: HeldRequest) -> str:
    return f"{request.id} ({request.size} bytes, {'running' if request.running else 'waiting'})"


def _curve_words(curve: Sequence[tuple[float, int]]) -> str:
    """Eleven points at most: a log is read by eye."""
    step = -(-len(curve) // 10)
    points = [*curve[:-1:step], curve[-1]]
    return ", ".join(f"{size / MIB:.0f} MiB {age:.0f} s before" for age, size in points)
