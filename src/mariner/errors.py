"""Every error the server answers with: status, wire name and message.

The wire names are the ``type`` members of TorchServe's error bodies; clients match on them. Where an
error is raised decides its message; where it is caught (the HTTP error hook) only formats it.

    MarinerError
    ├── BadRequest            what the caller sent cannot be understood
    │   ├── InvalidArchive
    │   │   └── DependenciesFailed
    │   ├── InvalidKey
    │   └── DownloadFailed
    ├── NotFound
    │   ├── ModelNotFound
    │   └── VersionNotFound
    ├── MethodNotAllowed
    ├── Conflict
    ├── ServiceUnavailable    try again later, or elsewhere
    │   ├── Starting
    │   ├── QueueFull
    │   ├── DeadlineTooShort
    │   ├── NoWorker
    │   │   ├── Loading
    │   │   ├── Broken
    │   │   └── Busy
    │   ├── TooManySequences
    │   ├── SequenceEnded
    │   └── Draining
    ├── RequestTimeout
    ├── WorkerDied            the process that ran the request is gone
    │   └── Quarantined
    ├── WorkerStartFailed
    ├── ConfigurationError    the server cannot start as it is configured
    ├── InvalidModel          a model is described wrongly in Python
    └── DeploymentError       a model cannot be deployed, or its service refuses a call
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadRequest",
    "Broken",
    "Busy",
    "ConfigurationError",
    "Conflict",
    "DeadlineTooShort",
    "DefaultVersionInUse",
    "DependenciesFailed",
    "DeploymentError",
    "DownloadFailed",
    "Draining",
    "InternalError",
    "InvalidArchive",
    "InvalidKey",
    "InvalidModel",
    "Loading",
    "MarinerError",
    "MethodNotAllowed",
    "ModelNotFound",
    "NoWorker",
    "NotFound",
    "PayloadTooLarge",
    "PredictionFailed",
    "Quarantined",
    "QueueFull",
    "RequestTimeout",
    "SequenceEnded",
    "ServiceUnavailable",
    "Starting",
    "TooManySequences",
    "VersionNotFound",
    "WorkerDied",
    "WorkerStartFailed",
]


class MarinerError(Exception):
    """Base of all errors that are answers.

    Attributes:
        status: HTTP status of the answer.
        wire_name: ``type`` member of the error body.
        reason: machine-readable cause, an additive member of the body; empty when the type says it all.
        death_id: certificate of the death that is to blame, an additive member of the body; empty if there is none.
        hint: what to do next, an additive member of the body.
        retry_after: seconds after which a retry makes sense; becomes the ``Retry-After`` header.
    """

    status: int = 500  # on the instance where the answer decides it (a handler's code, out of memory)
    wire_name: ClassVar[str] = "InternalServerException"
    reason: str = ""  # on the instance where a death decides it
    death_id: str = ""

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after

    def __str__(self) -> str:
        """The message."""
        return self.message


class InternalError(MarinerError):
    """A defect of the server: the log has the traceback, the client a request id."""


class PredictionFailed(MarinerError):
    """The handler failed; the worker says with which status (handlers choose it: ``PredictionException``)."""

    reason = "prediction_failed"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BadRequest(MarinerError):
    """A parameter or a body is missing or malformed."""

    status = 400
    wire_name = "BadRequestException"


class InvalidArchive(BadRequest):
    """The archive, its manifest or its dependencies cannot be used."""

    wire_name = "InvalidModelException"


class DependenciesFailed(InvalidArchive):
    """The packages or the interpreter that the archive asks for could not be had."""

    wire_name = "ModelException"


class DownloadFailed(BadRequest):
    """A remote archive could not be fetched."""

    wire_name = "DownloadArchiveException"


class InvalidKey(BadRequest):
    """The authorization token is missing, wrong or expired."""

    wire_name = "InvalidKeyException"


class NotFound(MarinerError):
    """No such path."""

    status = 404
    wire_name = "ResourceNotFoundException"


class ModelNotFound(NotFound):
    """No model of that name, or no archive at that place."""

    wire_name = "ModelNotFoundException"


class VersionNotFound(NotFound):
    """The model exists, the version does not."""

    wire_name = "ModelVersionNotFoundException"


class MethodNotAllowed(MarinerError):
    """The path exists, the verb does not."""

    status = 405
    wire_name = "MethodNotAllowedException"


class Conflict(MarinerError):
    """The name and version are taken."""

    status = 409
    wire_name = "ConflictStatusException"


class DefaultVersionInUse(MarinerError):
    """The default version cannot go while others remain."""

    status = 403
    wire_name = "InvalidModelVersionException"


class PayloadTooLarge(MarinerError):
    """The body exceeds ``max_request_size``."""

    status = 413
    wire_name = "RequestEntityTooLargeException"


class RequestTimeout(MarinerError):
    """The client's deadline passed before an answer existed: 408 while it waited, 504 while the handler ran."""

    status = 408
    wire_name = "RequestTimeoutException"
    reason = "deadline_exceeded"


class ServiceUnavailable(MarinerError):
    """Nothing is wrong with the request; the model cannot take it now."""

    status = 503
    wire_name = "ServiceUnavailableException"


class Starting(ServiceUnavailable):
    """The server does not know its models yet."""

    reason = "starting"


class QueueFull(ServiceUnavailable):
    """As many requests wait as ``job_queue_size`` allows."""

    reason = "queue_full"


class DeadlineTooShort(ServiceUnavailable):
    """What waits takes longer than the request may; it is refused at once, not after its deadline."""

    reason = "deadline"


class NoWorker(ServiceUnavailable):
    """The model has no worker and none is coming."""

    reason = "no_worker"


class Loading(NoWorker):
    """The model's workers have not come yet."""

    reason = "loading"


class Broken(NoWorker):
    """The model's workers failed too often and are not started again."""

    reason = "broken"


class Busy(NoWorker):
    """Each worker is busy, and the model is not to let requests wait (``useJobTicket``)."""

    reason = "busy"


class TooManySequences(ServiceUnavailable):
    """As many sequences are open as ``maxNumSequence`` allows."""

    reason = "too_many_sequences"


class SequenceEnded(ServiceUnavailable):
    """The sequence that the request belongs to was closed, lasted too long, or lost its worker."""

    reason = "sequence_ended"


class Draining(ServiceUnavailable):
    """The model or the server is going away and takes nothing new."""

    reason = "draining"


class WorkerDied(MarinerError):
    """The worker ended or was ended while the request was running in it."""

    reason = "worker_died"


class Quarantined(WorkerDied):
    """An identical request killed two workers; this one was not run."""

    reason = "quarantined"


class WorkerStartFailed(MarinerError):
    """No worker of the model could load it."""

    reason = "worker_start_failed"

    def __init__(self, message: str, *, out_of_memory: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        if out_of_memory:
            self.status = 507


class ConfigurationError(MarinerError):
    """A setting, a flag or a file the server was started with is wrong."""

    reason = "configuration"


class InvalidModel(MarinerError):
    """A model is described wrongly in Python; the text names the key and what to write instead."""

    reason = "invalid_model"

    def __str__(self) -> str:
        """Message and hint: no server stands between this error and the one who reads it."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class DeploymentError(MarinerError):
    """A model cannot be deployed, or its service refuses a call; ``status`` is that of the service's answer."""

    reason = "deployment"

    def __init__(self, message: str, *, hint: str = "", status: int = 500) -> None:
        super().__init__(message, hint=hint)
        self.status = status

    def __str__(self) -> str:
        """Message and hint, for the same reason."""
        return f"{self.message} {self.hint}" if self.hint else self.message
