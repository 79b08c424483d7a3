"""What requests are told that are not served: one function per reason, named like it. Pure."""

from __future__ import annotations

from mariner.errors import Broken, Busy, DeadlineTooShort, Draining, Loading, NoWorker, RequestTimeout
from mariner.jobs import Job
from mariner.overload import retry_after

__all__ = [
    "broken",
    "busy",
    "deadline_too_short",
    "draining",
    "loading",
    "no_answer",
    "no_worker",
    "stopped",
    "waited_too_long",
]

_MORE_TIME = "allow more time (clientTimeoutInMills, X-Request-Timeout-Ms)"

# -- at once -----------------------------------------------------------------------------------------------------------


def no_worker(model: str) -> NoWorker:
    """The error for a request that meets no worker, and none is coming."""
    return NoWorker(_no_worker_text(model))


def busy(model: str) -> Busy:
    """The error for a request that meets no idle worker, where none may wait."""
    return Busy(_no_worker_text(model), hint="Each of them is busy, and with useJobTicket no request waits.")


def _no_worker_text(model: str) -> str:
    return (
        f'Model "{model}" has no worker to serve inference request. '
        "Please use scale workers API to add workers. If this is a sequence inference, please check if it is "
        "closed, or expired; or exceeds maxSequenceJobQueueSize"
    )


def broken(model: str) -> Broken:
    """The error for a request of a model whose workers will not come without help."""
    return Broken(
        f'Model "{model}" has no worker to serve inference request: its workers failed too often and are not started '
        "again.",
        hint="Scale the model or register it again to retry.",
    )


def draining(model: str) -> Draining:
    """The error for a request that comes when its model is going."""
    return Draining(f'Model "{model}" is being unregistered or stopped.', retry_after=1.0)


def deadline_too_short(model: str, left: float, wait: float, batch: float) -> DeadlineTooShort:
    """The error for a request that would be begun, or answered, too late.

    Args:
        model: that it is for.
        left: seconds that it has.
        wait: seconds until it would be begun.
        batch: seconds that its batch would take then.
    """
    return DeadlineTooShort(
        f"{model}: the request would be answered in about {wait + batch:.3f} s, and has {left:.3f} s.",
        hint=f"Retry later, add workers, or {_MORE_TIME}.",
        retry_after=retry_after(wait),
    )


# -- after a while -----------------------------------------------------------------------------------------------------


def loading(model: str, seconds: float) -> Loading:
    """The error for a job that has waited for a worker's coming as long as one may."""
    return Loading(
        f'Model "{model}" has no worker to serve inference request yet: it is loading, for {seconds:.0f} s so far.',
        hint="Retry later. The server's log says what the workers are doing.",
        retry_after=retry_after(seconds),  # nobody knows; what has taken long may take as long again
    )


def stopped(model: str) -> Draining:
    """The error for a job that waited until its model had gone."""
    return Draining(f'Model "{model}" was stopped before the turn of this request came.')


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
