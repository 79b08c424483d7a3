"""The words in which an operation is described to those who call it, and the errors they should expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mariner.errors import (
    BadRequest,
    Broken,
    Conflict,
    DeadlineTooShort,
    DefaultVersionInUse,
    DependenciesFailed,
    DownloadFailed,
    Draining,
    InternalError,
    InvalidArchive,
    InvalidKey,
    Loading,
    MarinerError,
    MethodNotAllowed,
    ModelNotFound,
    NoWorker,
    PayloadTooLarge,
    PredictionFailed,
    Quarantined,
    QueueFull,
    RequestTimeout,
    Starting,
    VersionNotFound,
    WorkerDied,
    WorkerStartFailed,
)
from mariner.http.openapi.schemas import Schema, text

__all__ = [
    "ALWAYS",
    "ERRORS",
    "PATH_PARAMETERS",
    "REQUEST_ID",
    "Answer",
    "Body",
    "Operation",
    "Parameter",
    "Table",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, or a header.

    Attributes:
        name: as it is sent.
        schema: its values; the description is that of the parameter.
        place: ``query`` or ``header``.
        required: there is no call without it.
        deprecated: accepted without effect.
    """

    name: str
    schema: Schema
    place: str = "query"
    required: bool = False
    deprecated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One way a call may end well.

    Attributes:
        description: when it comes, for people.
        schema: shape of the body.
        media: its content type; ``*/*`` if a handler decides.
        example: a body that was seen.
    """

    description: str
    schema: Schema
    media: str = "application/json"
    example: Any = None


@dataclass(frozen=True, slots=True)
class Body:
    """One form of a request body.

    Attributes:
        schema: its shape.
        example: one that works.
    """

    schema: Schema
    example: Any = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a route, for those who call it.

    Attributes:
        id: name of the call in generated clients; TorchServe's, where it has one.
        tag: the group it is shown in.
        answers: by status; a text is a key such as ``default``.
        errors: names in :data:`ERRORS`.
        parameters: those outside the path.
        body: shapes of the request body by media type; empty if none is read.
        description: what the summary of the route leaves open.
        deprecated: there is a better call.
    """

    id: str
    tag: str
    answers: Mapping[int | str, Answer]
    errors: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Body] = field(default_factory=dict)
    description: str = ""
    deprecated: bool = False


PATH_PARAMETERS: dict[str, Schema] = {
    "model_name": text("Name of the model.", minLength=1),
    "model_version": text("Version of the model.", minLength=1),
    "url_path": text("Handed to the handler as the header url_path; may hold slashes.", minLength=1),
}

REQUEST_ID = "00000000-0000-4000-8000-000000000000"  # of examples

# -- errors ------------------------------------------------------------------------------------------------------------


def _no_answer_in_time() -> RequestTimeout:
    error = RequestTimeout(
        'Model "digits": no answer within the 1 s the request had.',
        hint="Allow more time (clientTimeoutInMills, X-Request-Timeout-Ms) or make the handler faster.",
    )
    error.status = 504
    return error


ERRORS: dict[str, MarinerError] = {
    "Malformed": BadRequest("The query holds a % that is not followed by two hexadecimal digits."),
    "Starting": Starting("The server is starting: it does not know its models yet."),
    "Stopping": Draining("The server is stopping.", hint="Send the request to another server."),
    "UnknownModel": ModelNotFound("Model not found: digits"),
    "UnknownVersion": VersionNotFound("Model version: 2.0 does not exist for model: digits"),
    "NoSuchDefault": VersionNotFound("Model version 2.0 does not exist for model digits"),
    "TooLarge": PayloadTooLarge(
        "The request body is over the limit of 6553500 bytes.",
        hint="Raise max_request_size in the configuration of the server.",
    ),
    "Late": RequestTimeout(
        'Model "digits": the request waited 0.512 s, longer than its deadline allows.',
        hint="Add workers or allow more time (clientTimeoutInMills, X-Request-Timeout-Ms).",
    ),
    "NoAnswerInTime": _no_answer_in_time(),
    "TooBusy": DeadlineTooShort(
        'Model "digits": the request would be answered in about 1.830 s, and has 1.000 s.',
        hint="Retry later, add workers, or allow more time (clientTimeoutInMills, X-Request-Timeout-Ms).",
    ),
    "Loading": Loading(
        'Model "digits" has no worker to serve inference request yet: it is loading, for 120 s so far.',
        hint="Retry later. The server's log says what the workers are doing.",
    ),
    "Broken": Broken(
        'Model "digits" has no worker to serve inference request: its workers failed too often and are not started '
        "again.",
        hint="The server's log has the reason. Scale the model or register it again to retry.",
    ),
    "QueueFull": QueueFull(
        'Model "digits" has its queue full: 100 requests wait, job_queue_size is 100.',
        hint="Retry later, add workers, or raise job_queue_size (jobQueueSize in the model config).",
    ),
    "NoWorker": NoWorker(
        'Model "digits" has no worker to serve inference request. Please use scale workers API to add workers.'
    ),
    "NoDescriber": NoWorker(
        'Model "digits" has no worker to serve describe request. Please use scale workers API to add workers.'
    ),
    "NoDependencies": DependenciesFailed("Custom pip package installation failed for model digits"),
    "WorkerDied": WorkerDied("Worker died."),
    "Quarantined": Quarantined('Model "digits" does not run this request: an identical one killed two workers.'),
    "PredictionFailed": PredictionFailed(503, "Prediction failed"),
    "OutOfResources": PredictionFailed(507, "Out of resources"),
    "NoModelName": BadRequest("Parameter model_name is required."),
    "NoUrl": BadRequest("Parameter url is required."),
    "BadArchive": InvalidArchive("Model name is not defined."),
    "NotFetched": DownloadFailed("Failed to download archive from: https://models.example/digits.mar"),
    "NoArchive": ModelNotFound("Model not found at: digits.mar"),
    "NoKey": InvalidKey("Token Authentication failed. Token either incorrect, expired, or not provided correctly"),
    "ModelApiOff": MethodNotAllowed("Requested method is not allowed, please refer to API document."),
    "Taken": Conflict("Model version 1.0 is already registered for model digits"),
    "StartFailed": WorkerStartFailed("Failed to start workers for model digits version: 1.0"),
    "LoadOutOfMemory": WorkerStartFailed("Failed to start workers for model digits version: 1.0", out_of_memory=True),
    "FewerThanKept": BadRequest("max_worker cannot be less than min_worker."),
    "NoWeight": BadRequest("No weight is above 0.", hint="Give each version its share, as in 70 and 30."),
    "Defect": InternalError(
        "Internal server error.",
        hint=f"The log of the server has the cause under request id {REQUEST_ID}.",
    ),
    "DefaultInUse": DefaultVersionInUse("Cannot remove default version for model digits"),
}
"""One of each kind that callers should expect, as they see it."""

ALWAYS = ("Malformed", "Starting", "Stopping")
"""Errors of every operation."""

Table = dict[str, dict[str, Operation]]
"""Operations by the path of their route and the method that clients use, one of several perhaps."""
