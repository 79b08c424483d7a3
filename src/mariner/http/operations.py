"""What each route takes and answers, for the API description. Which routes there are is not decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mariner.auth import Listener
from mariner.errors import (
    BadRequest,
    Conflict,
    DefaultVersionInUse,
    DownloadFailed,
    Draining,
    InternalError,
    InvalidArchive,
    MarinerError,
    MethodNotAllowed,
    ModelNotFound,
    NoWorker,
    PayloadTooLarge,
    PredictionFailed,
    QueueFull,
    RequestTimeout,
    VersionNotFound,
    WorkerDied,
    WorkerStartFailed,
)
from mariner.http.schemas import ANYTHING, BINARY, SCHEMAS, TEXT, Schema, array, flag, integer, reference, text

__all__ = [
    "DESCRIPTION",
    "ERRORS",
    "OPERATIONS",
    "PATH_PARAMETERS",
    "REQUEST_ID",
    "Answer",
    "Body",
    "Operation",
    "Parameter",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, or a header.

    Attributes:
        name: as it is sent.
        schema: its values; the description is that of the parameter.
        place: ``query`` or ``header``.
        deprecated: accepted without effect.
    """

    name: str
    schema: Schema
    place: str = "query"
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

ERRORS: dict[str, MarinerError] = {
    "Malformed": BadRequest("The query holds a % that is not followed by two hexadecimal digits."),
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
    "WorkerDied": WorkerDied("Worker died."),
    "PredictionFailed": PredictionFailed(503, "Prediction failed"),
    "OutOfResources": PredictionFailed(507, "Out of resources"),
    "NoUrl": BadRequest("Parameter url is required."),
    "BadArchive": InvalidArchive("Model name is not defined."),
    "NotFetched": DownloadFailed("Failed to download archive from: https://models.example/digits.mar"),
    "NoArchive": ModelNotFound("Model not found at: digits.mar"),
    "ModelApiOff": MethodNotAllowed("Requested method is not allowed, please refer to API document."),
    "Taken": Conflict("Model version 1.0 is already registered for model digits"),
    "StartFailed": WorkerStartFailed("Failed to start workers for model digits version: 1.0"),
    "LoadOutOfMemory": WorkerStartFailed("Failed to start workers for model digits version: 1.0", out_of_memory=True),
    "FewerThanKept": BadRequest("max_worker cannot be less than min_worker."),
    "Defect": InternalError(
        "Internal server error.",
        hint=f"The log of the server has the cause under request id {REQUEST_ID}.",
    ),
    "DefaultInUse": DefaultVersionInUse("Cannot remove default version for model digits"),
}
"""One of each kind that callers should expect, as they see it."""

_ALWAYS = ("Malformed", "Stopping")
_INFERENCE = (
    *_ALWAYS,
    *("Late", "TooLarge", "WorkerDied", "PredictionFailed", "NoWorker", "QueueFull", "OutOfResources"),
)

# -- parameters and bodies ---------------------------------------------------------------------------------------------

_TIMEOUT = Parameter(
    "x-request-timeout-ms", integer("Milliseconds after which nobody wants the answer.", least=1), place="header"
)
_IGNORED = (
    Parameter("synchronous", flag("Has no effect."), deprecated=True),
    Parameter("timeout", integer("Has no effect.", least=None), deprecated=True),
)
_REGISTRATION = tuple(Parameter(name, schema) for name, schema in SCHEMAS["Registration"]["properties"].items())
_SCALING = (
    *(Parameter(name, schema) for name, schema in SCHEMAS["Scaling"]["properties"].items()),
    Parameter("number_gpu", integer("Has no effect.", least=None), deprecated=True),
    Parameter("timeout", integer("Has no effect.", least=None), deprecated=True),
)
_EITHER = "Parameters come in the query, or in a JSON body: then the query is not read."
_CUSTOMIZED = Parameter("customized", flag("Ask the handler what it says of itself, too."))

_INPUT = {
    "application/octet-stream": Body(BINARY),
    "application/json": Body(ANYTHING, {"text": "The harbour was quiet."}),
    "text/plain": Body(TEXT, "The harbour was quiet."),
    "multipart/form-data": Body({"type": "object", "properties": {"data": BINARY}}),
}

# -- operations --------------------------------------------------------------------------------------------------------


def _inference(id_: str, verb: str, *, versioned: bool, description: str = "") -> Operation:
    return Operation(
        id_,
        "Inference",
        {
            200: Answer(f"The {verb}, as the handler returns it.", ANYTHING, "*/*"),
            "default": Answer("Any other status the handler chooses.", ANYTHING, "*/*"),
        },
        ("UnknownModel", *(["UnknownVersion"] if versioned else []), *_INFERENCE),
        (_TIMEOUT,),
        _INPUT,
        description or "Every HTTP method does the same; curl -T sends PUT.",
    )


def _inference_routes(family: str, verb: str) -> dict[tuple[Listener, str], dict[str, Operation]]:
    path = f"/{family}/{{model_name}}"
    with_version = path + "/{model_version}"
    return {
        (_I, path): {"post": _inference(family, verb, versioned=False)},
        (_I, with_version): {"post": _inference(f"version_{family}", verb, versioned=True)},
        (_I, with_version + "/{url_path*}"): {"post": _inference(f"path_{family}", verb, versioned=True)},
    }


def _describe(prefix: str, *unknown: str) -> Operation:
    return Operation(
        f"{prefix}describeModel",
        "Models",
        {200: Answer("One entry for each version.", reference("ModelDescriptions"))},
        (*unknown, *_ALWAYS, "NoDescriber"),
        (_CUSTOMIZED,),
    )


def _scale(prefix: str, *unknown: str) -> Operation:
    status = reference("Status")
    return Operation(
        f"{prefix}setAutoScale",
        "Models",
        {
            200: Answer("The workers are there.", status, example={"status": "Workers scaled to 2 for model: digits"}),
            202: Answer("The workers will come or go.", status, example={"status": "Processing worker updates..."}),
            206: Answer(
                "Some workers are not ready yet.", status, example={"status": "Workers scaling in progress..."}
            ),
        },
        (*unknown, "FewerThanKept", *_ALWAYS, "StartFailed", "LoadOutOfMemory"),
        _SCALING,
        {"application/json": Body(reference("Scaling"), {"min_worker": 2})},
        _EITHER,
    )


def _unregister(prefix: str, *unknown: str) -> Operation:
    return Operation(
        f"{prefix}unregisterModel",
        "Models",
        {200: Answer("It is gone.", reference("Status"), example={"status": 'Model "digits" unregistered'})},
        (*unknown, "DefaultInUse", "ModelApiOff", *_ALWAYS),
        _IGNORED,
    )


def _registered(text: str) -> dict[str, str]:
    return {"status": f'Model "digits" Version: 1.0 registered with {text}'}


_I, _M, _METRICS = Listener
_MODEL, _VERSION = "/models/{model_name}", "/models/{model_name}/{model_version}"

OPERATIONS: dict[tuple[Listener, str], dict[str, Operation]] = {
    (_I, "/ping"): {
        "get": Operation(
            "ping",
            "Health",
            {
                200: Answer("Healthy.", reference("Health"), example={"status": "Healthy"}),
                500: Answer("A model has failed for good.", reference("Health"), example={"status": "Unhealthy"}),
            },
            _ALWAYS,
        )
    },
    **_inference_routes("predictions", "prediction"),
    **_inference_routes("explanations", "explanation"),
    (_M, "/models"): {
        "get": Operation(
            "listModels",
            "Models",
            {
                200: Answer(
                    "Default versions, sorted by name.",
                    reference("ModelList"),
                    example={"models": [{"modelName": "digits", "modelUrl": "digits.mar"}]},
                )
            },
            _ALWAYS,
            (
                Parameter("limit", integer("Models in the answer, at most.", maximum=100, default=100)),
                Parameter("next_page_token", integer("Where to go on: nextPageToken of the answer before.")),
            ),
        ),
        "post": Operation(
            "registerModel",
            "Models",
            {
                200: Answer("The model is served.", reference("Status"), example=_registered("1 initial workers")),
                202: Answer(
                    "The workers will come.", reference("Status"), example={"status": "Processing worker updates..."}
                ),
                206: Answer(
                    "Some workers are not ready yet.",
                    reference("Status"),
                    example={"status": "Workers scaling in progress..."},
                ),
            },
            (
                *("NoUrl", "BadArchive", "NotFetched", "NoArchive", "ModelApiOff", "Taken", "TooLarge"),
                *(*_ALWAYS, "StartFailed", "LoadOutOfMemory"),
            ),
            _REGISTRATION,
            {"application/json": Body(reference("Registration"), {"url": "digits.mar"})},
            f"{_EITHER} url is required.",
        ),
    },
    (_M, _MODEL): {
        "get": _describe("", "UnknownModel"),
        "put": _scale("", "UnknownModel"),
        "delete": _unregister("", "UnknownModel"),
    },
    (_M, _VERSION): {
        "get": _describe("version_", "UnknownModel", "UnknownVersion"),
        "put": _scale("version_", "UnknownModel", "UnknownVersion"),
        "delete": _unregister("version_", "UnknownModel", "UnknownVersion"),
    },
    (_M, _VERSION + "/set-default"): {
        "put": Operation(
            "setDefault",
            "Models",
            {
                200: Answer(
                    "Requests that name no version go there now.",
                    reference("Status"),
                    example={"status": 'Default version successfully updated for model "digits" to "2.0"'},
                )
            },
            ("UnknownModel", "NoSuchDefault", *_ALWAYS),
        )
    },
    (_METRICS, "/metrics"): {
        "get": Operation(
            "metrics",
            "Metrics",
            {200: Answer("One line per sample.", TEXT, "text/plain", example="# TYPE Requests2XX counter\n")},
            _ALWAYS,
            (Parameter("name[]", array(TEXT, description="Only samples of these names.")),),
        )
    },
}
"""By listener and path of the route. A route of any method is described under the one that clients use."""

_DOCUMENT = Answer("An OpenAPI document.", {"type": "object"})

DESCRIPTION: dict[str, dict[str, tuple[str, Operation]]] = {
    "/": {
        "options": (
            "This listener's API, for clients made for TorchServe.",
            Operation("apiDescription", "API description", {200: _DOCUMENT}, description="OpenAPI 3.0."),
        )
    },
    "/api-description": {
        "get": (
            "The same as OPTIONS /.",
            Operation("api-description", "API description", {200: _DOCUMENT}, deprecated=True),
        )
    },
    "/openapi.json": {
        "get": (
            "This listener's API.",
            Operation("openApiDocument", "API description", {200: _DOCUMENT}, description="OpenAPI 3.1."),
        )
    },
    "/docs": {
        "get": (
            "A page to read about the API and to try it.",
            Operation("docs", "API description", {200: Answer("The page.", TEXT, "text/html")}),
        )
    },
}
"""Summaries and operations of what describes the API itself, on every listener and without a key."""
