"""What the operations of the management listener take and answer."""

from __future__ import annotations

from mariner.http.openapi.operations import ALWAYS, Answer, Body, Operation, Parameter, Table
from mariner.http.openapi.schemas import ANYTHING, SCHEMAS, flag, integer, reference, text

__all__ = ["MANAGEMENT"]

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
_TRAFFIC = reference("Traffic")
_SHARED = {"modelName": "digits", "defaultVersion": "1.0", "weights": {"1.0": 70, "2.0": 30}}
_EITHER = "Parameters come in the query, or in a JSON body: then the query is not read."
_SETTINGS = Parameter("settings", flag("Show every key of the model config, and which place decided about it."))
_CUSTOMIZED = Parameter("customized", flag("Ask the handler what it says of itself, too."))

# -- operations --------------------------------------------------------------------------------------------------------


def _describe(prefix: str, *unknown: str) -> Operation:
    return Operation(
        f"{prefix}describeModel",
        "Models",
        {200: Answer("One entry for each version.", reference("ModelDescriptions"))},
        (*unknown, *ALWAYS, "NoDescriber"),
        (_CUSTOMIZED, _SETTINGS),
    )


def _deaths(prefix: str, *unknown: str) -> Operation:
    return Operation(
        f"{prefix}modelDeaths",
        "Models",
        {200: Answer("Death certificates, latest first.", reference("Deaths"))},
        (*unknown, *ALWAYS),
        description="Certificates stay when the model is unregistered, until the server stops.",
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
        (*unknown, "FewerThanKept", *ALWAYS, "StartFailed", "LoadOutOfMemory"),
        _SCALING,
        {"application/json": Body(reference("Scaling"), {"min_worker": 2})},
        _EITHER,
    )


def _unregister(prefix: str, *unknown: str) -> Operation:
    return Operation(
        f"{prefix}unregisterModel",
        "Models",
        {200: Answer("It is gone.", reference("Status"), example={"status": 'Model "digits" unregistered'})},
        (*unknown, "DefaultInUse", "ModelApiOff", *ALWAYS),
        _IGNORED,
    )


def _registered(text: str) -> dict[str, str]:
    return {"status": f'Model "digits" Version: 1.0 registered with {text}'}


MANAGEMENT: Table = {
    "/models": {
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
            ALWAYS,
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
                *(
                    "NoUrl",
                    "BadArchive",
                    "NoDependencies",
                    "NotFetched",
                    "NoArchive",
                    "ModelApiOff",
                    "Taken",
                    "TooLarge",
                ),
                *(*ALWAYS, "StartFailed", "LoadOutOfMemory"),
            ),
            _REGISTRATION,
            {"application/json": Body(reference("Registration"), {"url": "digits.mar"})},
            f"{_EITHER} url is required.",
        ),
    },
    "/models/{model_name}": {
        "get": _describe("", "UnknownModel"),
        "put": _scale("", "UnknownModel"),
        "delete": _unregister("", "UnknownModel"),
    },
    "/models/{model_name}/deaths": {"get": _deaths("", "UnknownModel")},
    "/models/{model_name}/{model_version}/deaths": {"get": _deaths("version_", "UnknownModel", "UnknownVersion")},
    "/models/{model_name}/traffic": {
        "get": Operation(
            "showTraffic",
            "Models",
            {200: Answer("How the requests that name no version are divided.", _TRAFFIC, example=_SHARED)},
            ("UnknownModel", *ALWAYS),
        ),
        "put": Operation(
            "shareTraffic",
            "Models",
            {200: Answer("From the next request on.", _TRAFFIC, example=_SHARED)},
            ("UnknownModel", "UnknownVersion", "NoWeight", "TooLarge", *ALWAYS),
            body={"application/json": Body(reference("Sharing"), {"weights": _SHARED["weights"]})},
            description="Versions that are not named get none of them. Choosing a default version ends the sharing, as "
            "sending no weights does.",
        ),
    },
    "/models/{model_name}/{model_version}": {
        "get": _describe("version_", "UnknownModel", "UnknownVersion"),
        "put": _scale("version_", "UnknownModel", "UnknownVersion"),
        "delete": _unregister("version_", "UnknownModel", "UnknownVersion"),
    },
    "/models/{model_name}/{model_version}/set-default": {
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
            ("UnknownModel", "NoSuchDefault", *ALWAYS),
        )
    },
    "/models/{model_name}/{model_version}/reload": {
        "put": Operation(
            "reloadVersion",
            "Models",
            {
                200: Answer(
                    "The new workers answer, and the old ones are gone.",
                    reference("Status"),
                    example={"status": 'Model "digits" version 1.0 replaced by version 1.0'},
                )
            },
            (
                *("UnknownModel", "UnknownVersion", "BadArchive", "NoDependencies", "NotFetched", "ModelApiOff"),
                *("Taken", *ALWAYS, "StartFailed", "LoadOutOfMemory"),
            ),
            description="The archive is read anew. Requests go to the old workers until the new ones are ready.",
        )
    },
    "/token": {
        "get": Operation(
            "token",
            "Keys",
            {200: Answer("The key file holds the new key.", ANYTHING, "*/*")},
            ("NoKey", *ALWAYS),
            (Parameter("type", text("Which key is replaced.", enum=["inference", "management"]), required=True),),
            description="Send the API key of the key file as a bearer token.",
        )
    },
}
