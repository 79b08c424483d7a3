"""What the operations of the inference listener take and answer."""

from __future__ import annotations

from typing import Any

from mariner.http.openapi.operations import ALWAYS, Answer, Body, Operation, Parameter, Table
from mariner.http.openapi.schemas import ANYTHING, BINARY, TEXT, Schema, integer, reference, text

__all__ = ["INFERENCE"]

_REFUSALS = ("NoWorker", "Loading", "Broken", "QueueFull", "TooBusy")
_FAILURES = ("WorkerDied", "Quarantined", "PredictionFailed")
_ERRORS = (
    *ALWAYS,
    *("Late", "NoAnswerInTime", "TooLarge", *_FAILURES, *_REFUSALS, "OutOfResources"),
)
_MODEL, _VERSION = ("UnknownModel",), ("UnknownModel", "UnknownVersion")

_TIMEOUT = Parameter(
    "x-request-timeout-ms", integer("Milliseconds after which nobody wants the answer.", least=1), place="header"
)
_MODEL_NAME = Parameter("model_name", text("Name of the model; not needed if one was loaded when the server started."))

_SENTENCE = "The harbour was quiet."
_INPUT = {
    "application/octet-stream": Body(BINARY),
    "application/json": Body(ANYTHING, {"text": _SENTENCE}),
    "text/plain": Body(TEXT, _SENTENCE),
    "multipart/form-data": Body({"type": "object", "properties": {"data": BINARY}}),
}
_INSTANCES = {"application/json": Body(reference("Instances"), {"instances": [{"data": _SENTENCE}]})}
_TENSOR = {"name": "input-0", "shape": [2], "datatype": "FP32", "data": [0.5, 0.25]}
_TENSORS = {"application/json": Body(reference("InferenceRequest"), {"id": "1", "inputs": [_TENSOR]})}

_ANY_METHOD = "Every HTTP method does the same; curl -T sends PUT."
_ENVELOPE = "What the body must hold is a matter of the model's envelope, {}; without one the handler gets it as it is."


def _prediction(
    id_: str,
    errors: tuple[str, ...],
    what: str = "prediction",
    body: dict[str, Body] = _INPUT,
    *,
    tag: str = "Inference",
    description: str = _ANY_METHOD,
    parameters: tuple[Parameter, ...] = (),
    example: Any = None,
    deprecated: bool = False,
) -> dict[str, Operation]:
    answers: dict[int | str, Answer] = {
        200: Answer(f"The {what}, as the handler returns it.", ANYTHING, "*/*", example),
        "default": Answer("Any other status the handler chooses.", ANYTHING, "*/*"),
    }
    parameters = (*parameters, _TIMEOUT)
    return {
        "post": Operation(id_, tag, answers, (*errors, *_ERRORS), parameters, body, description, deprecated=deprecated)
    }


def _question(id_: str, schema: str, example: Any, *errors: str, tag: str, no: Any = None) -> dict[str, Operation]:
    """A question that is answered with 200, or 503 if the answer is no."""
    answers: dict[int | str, Answer] = {200: Answer("The answer.", reference(schema), example=example)}
    if no is not None:
        answers[503] = Answer("Not ready.", reference(schema), example=no)
    return {"get": Operation(id_, tag, answers, (*errors, *ALWAYS))}


def _family(name: str, what: str) -> Table:
    path = f"/{name}/{{model_name}}"
    with_version = path + "/{model_version}"
    return {
        path: _prediction(name, _MODEL, what),
        with_version: _prediction(f"version_{name}", _VERSION, what),
        with_version + "/{url_path*}": _prediction(f"path_{name}", _VERSION, what),
    }


def _v1(verb: str, id_: str, what: str) -> Table:
    description = _ENVELOPE.format("kserve")
    path = f"/v1/models/{{model_name}}:{verb}"
    # TorchServe calls it "predictions", too, which no validator accepts: an id is there once.
    return {path: _prediction(id_, _MODEL, what, _INSTANCES, tag="KServe", description=description)}


def _v2(verb: str, id_: str, what: str) -> Table:
    description = _ENVELOPE.format("kservev2")
    outputs = [{"name": "input-0", "datatype": "INT64", "data": [1], "shape": [1]}]
    example = {"id": "1", "model_name": "digits", "model_version": "1.0", "outputs": outputs}
    return {
        f"/v2/models/{{model_name}}{version}/{verb}": _prediction(
            f"v2_{prefix}{id_}", errors, what, _TENSORS, tag="KServe", description=description, example=example
        )
        for version, prefix, errors in (("", "", _MODEL), ("/versions/{model_version}", "version_", _VERSION))
    }


def _v2_model(suffix: str, id_: str, schema: str, example: Any, no: Any = None) -> Table:
    return {
        f"/v2/models/{{model_name}}{version}{suffix}": _question(
            f"v2_{prefix}{id_}", schema, example, *errors, tag="KServe", no=no
        )
        for version, prefix, errors in (("", "", _MODEL), ("/versions/{model_version}", "version_", _VERSION))
    }


def _ping() -> Operation:
    health: Schema = reference("Health")
    answers: dict[int | str, Answer] = {
        200: Answer("Healthy.", health, example={"status": "Healthy"}),
        500: Answer("A model has failed for good.", health, example={"status": "Unhealthy"}),
    }
    return Operation("ping", "Health", answers, ALWAYS)


_READY = {"name": "digits", "ready": True, "state": "ready"}
_NOT_READY = {
    "name": "digits",
    "ready": False,
    "state": "loading",
    "error": "Model digits is not ready: it is loading.",
}
_METADATA: dict[str, Any] = {"name": "digits", "versions": ["1.0"], "platform": "pytorch", "inputs": [], "outputs": []}

INFERENCE: Table = {
    "/ping": {"get": _ping()},
    **_family("predictions", "prediction"),
    **_family("explanations", "explanation"),
    "/invocations": _prediction("invocations", ("NoModelName", *_MODEL), parameters=(_MODEL_NAME,)),
    "/models/{model_name}/invoke": _prediction("invoke", _MODEL),
    "/{model_name}/predict": _prediction("predict", _MODEL, deprecated=True),
    "/{model_name}/{model_version}/predict": _prediction("version_predict", _VERSION, deprecated=True),
    "/v1/models": _question("v1_listModels", "ModelNames", {"models": ["digits"]}, tag="KServe"),
    **_v1("predict", "v1_predictions", "prediction"),
    **_v1("explain", "v1_explanations", "explanation"),
    "/v1/models/{model_name}": _question(
        "v1_modelReady", "ModelReady", {"name": "digits", "ready": True}, *_MODEL, tag="KServe"
    ),
    "/v2": _question(
        "v2_serverMetadata",
        "ServerMetadata",
        {"name": "Torchserve", "version": "0.12.0", "extensions": ["binary_tensor_data"]},
        tag="KServe",
    ),
    "/v2/health/live": _question("v2_live", "Live", {"live": True}, tag="Health"),
    "/v2/health/ready": _question(
        "v2_ready", "Ready", {"ready": True}, tag="Health", no={"ready": False, "state": "loading"}
    ),
    "/v2/models": _question("v2_listModels", "ModelNames", {"models": ["digits"]}, tag="KServe"),
    **_v2_model("", "modelMetadata", "ModelMetadata", _METADATA),
    **_v2_model("/ready", "modelReady", "ModelReady", _READY, _NOT_READY),
    **_v2("infer", "predictions", "prediction"),
    **_v2("explain", "explanations", "explanation"),
}
