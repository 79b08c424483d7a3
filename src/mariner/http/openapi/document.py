"""Parts of an OpenAPI document, made of operations. Pure: knows no server and no request.

What is used here means the same in OpenAPI 3.0 and 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

import orjson

from mariner.errors import MarinerError
from mariner.http.openapi.operations import ERRORS, PATH_PARAMETERS, REQUEST_ID, Answer, Operation, Parameter
from mariner.http.openapi.schemas import SCHEMAS, Schema, reference
from mariner.http.openapi.table import OPERATIONS

__all__ = ["CAPTURES", "Json", "components", "operation_object"]

Json = dict[str, Any]

CAPTURES = re.compile(r"\{(\w+)\*?\}")
"""The names in the path of a route."""

_OTHER = ("Defect",)  # what an operation answers where no status of its own fits
_ID_HEADER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}


def operation_object(summary: str, operation: Operation, path: str) -> Json:
    """An operation object.

    Args:
        summary: one line for people.
        operation: what it is made of.
        path: its template; each name in braces is a parameter.
    """
    described: Json = {"operationId": operation.id, "tags": [operation.tag], "summary": summary}
    if operation.description:
        described["description"] = operation.description
    if operation.deprecated:
        described["deprecated"] = True
    if parameters := [*_path_parameters(path), *map(_parameter, operation.parameters)]:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "content": {media: _content(body.schema, body.example) for media, body in operation.body.items()}
        }
    answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    described["responses"] = {**_errors(operation.errors), **answers}  # a handler's 500 is no error of ours
    return described


def _path_parameters(path: str) -> Iterator[Json]:
    for name in CAPTURES.findall(path):
        yield {"name": name, "in": "path", "required": True, **_described(PATH_PARAMETERS[name])}


def _parameter(parameter: Parameter) -> Json:
    described: Json = {"name": parameter.name, "in": parameter.place, **_described(parameter.schema)}
    if parameter.required:
        described["required"] = True
    if parameter.deprecated:
        described["deprecated"] = True
    return described


def _described(schema: Schema) -> Json:
    """The description of a parameter stands beside its schema."""
    inner = {key: value for key, value in schema.items() if key != "description"}
    return {"description": schema.get("description", ""), "schema": inner}


def _content(schema: Schema, example: Any) -> Json:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _answer(answer: Answer) -> Json:
    return {
        "description": answer.description,
        "headers": _ID_HEADER,
        "content": {answer.media: _content(answer.schema, answer.example)},
    }


def _errors(names: Iterable[str]) -> Json:
    """Errors by status, and one entry for those that are not worth a line of their own."""
    responses = {"default": ".".join(_OTHER)}
    responses.update((status, ".".join(same)) for status, same in _by_status(names).items())
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in responses.items()}


def _by_status(names: Iterable[str]) -> dict[str, list[str]]:
    by_status: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: ERRORS[name].status):
        by_status.setdefault(str(ERRORS[name].status), []).append(name)
    return by_status


def _error_responses() -> Iterator[tuple[str, Json]]:
    """What operations share: a response for each set of errors of one status."""
    everything = [
        operation for table in OPERATIONS.values() for methods in table.values() for operation in methods.values()
    ]
    groups = [same for operation in everything for same in _by_status(operation.errors).values()]
    for same in (_OTHER, *groups):
        errors = [ERRORS[name] for name in same]
        described = _meaning(errors[0]) if len(same) == 1 else HTTPStatus(errors[0].status).phrase
        content = {
            "schema": reference("Error"),
            "examples": {name: _error_example(error) for name, error in zip(same, errors, strict=True)},
        }
        response = {"description": described, "headers": _ID_HEADER, "content": {"application/json": content}}
        yield ".".join(same), response


def _meaning(error: MarinerError) -> str:
    return (type(error).__doc__ or "").partition("\n")[0].replace("``", "")


def _error_example(error: MarinerError) -> Json:
    body = {"code": error.status, "type": error.wire_name, "message": error.message}
    added = {"reason": error.reason, "hint": error.hint, "request_id": REQUEST_ID}
    return {"summary": _meaning(error), "value": body | {name: value for name, value in added.items() if value}}


def components(paths: Json) -> Json:
    """The parts that the paths refer to, directly or not."""
    used: dict[str, Json] = {}
    waiting: list[Any] = [paths]
    while waiting:
        for kind, name in _REFERENCE.findall(orjson.dumps(waiting.pop()).decode()):
            if name not in used.setdefault(kind, {}):
                used[kind][name] = _COMPONENTS[kind][name]
                waiting.append(used[kind][name])
    return used


_REFERENCE = re.compile(r'"\$ref":"#/components/(\w+)/([\w.]+)"')
_COMPONENTS: dict[str, Json] = {
    "schemas": SCHEMAS,
    "headers": {
        "RequestId": {
            "description": "Id of the request, also in the log.",
            "required": True,
            "schema": {"type": "string", "format": "uuid"},
        }
    },
    "responses": dict(_error_responses()),
}
