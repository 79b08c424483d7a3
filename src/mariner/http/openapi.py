"""The API described by itself: OpenAPI documents made from the table of routes, and a page to browse them.

Two versions of OpenAPI from one source. Clients generated for TorchServe ask for 3.0 (``OPTIONS /``) and find its
titles, paths and operation ids; everybody else is better off with 3.1 (``/openapi.json``).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from mariner.auth import Access, Listener, TokenMode
from mariner.errors import BadRequest, MarinerError, MethodNotAllowed
from mariner.http.exchange import Exchange, HeaderPairs
from mariner.http.messages import Response, json_response, read_query, write_error
from mariner.http.operations import (
    DESCRIPTION,
    ERRORS,
    OPERATIONS,
    PATH_PARAMETERS,
    REQUEST_ID,
    Answer,
    Operation,
    Parameter,
)
from mariner.http.schemas import SCHEMAS, Schema, reference
from mariner.settings import VERSION

if TYPE_CHECKING:
    from mariner.http.app import Route
    from mariner.model_server import ModelServer

__all__ = ["ApiDescription"]

_Json = dict[str, Any]

_CAPTURES = re.compile(r"\{(\w+)\*?\}")
_ALIAS = "{rest*}"  # such a route takes what follows the path of another one, and ignores it
_ABOUT = "Predictions of PyTorch models, and the management of models and their workers."
_OTHER = ("Defect",)  # what an operation answers where no status of its own fits
_ID_HEADER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}


class ApiDescription:
    """Answers the calls that ask what else may be called.

    Args:
        server: knows which models there are.
        access: which calls need a key.
        listeners: the kinds of routes served beside this.
        routes: the table.
    """

    def __init__(
        self, server: ModelServer, access: Access, listeners: Collection[Listener], routes: Iterable[Route]
    ) -> None:
        self._server = server
        self._access = access
        self._listeners = [listener for listener in Listener if listener in listeners]
        self._routes = [route for route in routes if route.listener in listeners and not route.path.endswith(_ALIAS)]
        self._makers: dict[str, Callable[[], Response]] = {
            "api-description": self._document_3_0,
            "openapi.json": self._document_3_1,
        }
        if self._for_people:
            self._makers["docs"] = _page
        self._made: dict[str, Response] = {}

    def answer(self, exchange: Exchange, segments: Sequence[str]) -> bool:
        """Answers, without asking for a key, if the path is one of ours."""
        name = segments[0] if len(segments) == 1 else ""
        if not segments and exchange.method == "OPTIONS":
            name = "api-description"
        if name not in self._makers:
            return False
        if name != "api-description" and exchange.method not in {"GET", "HEAD"}:
            error = MethodNotAllowed("Requested method is not allowed, please refer to API document.")
            write_error(exchange, error, (("Allow", "GET, HEAD"),))
            return True
        if name not in self._made:
            self._made[name] = self._makers[name]()
        _send(exchange, self._made[name])
        return True

    def answer_for_model(self, exchange: Exchange, route: Route, captured: Sequence[str]) -> bool:
        """Describes the calls for the model that the request names; False if the route is not about a model.

        Raises:
            BadRequest: the route takes the name from the query, and it is missing.
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        values = dict(zip(_CAPTURES.findall(route.path), captured, strict=False))
        if "model_name" not in values and not route.handler_input:
            return False
        model = values.get("model_name") or read_query(exchange.raw_query).get("model_name")
        if not model:
            raise BadRequest("Parameter model_name is required.")
        version = values.get("model_version")
        self._server.registry.get(model, None if version == "all" else version)
        _send(exchange, json_response(self._document_of(model, route.listener)))
        return True

    # -- documents ---------------------------------------------------------------------------------------------------

    @property
    def _for_people(self) -> bool:
        """Scrapers, not people, call the metrics listener."""
        return self._listeners != [Listener.METRICS]

    def _document_3_0(self) -> Response:
        # TorchServe lists exactly this path on the metrics listener.
        own = DESCRIPTION if self._for_people else {}
        paths = {**_own_paths(own), **self._paths(self._routes)}
        if Listener.METRICS not in self._listeners:
            # TorchServe's document has it on every listener, and clients have been generated from that.
            metrics = OPERATIONS[Listener.METRICS, "/metrics"]["get"]
            paths["/metrics"] = {"get": _operation("Metrics, on the metrics listener.", metrics)}
        return json_response(self._document("3.0.1", "TorchServe APIs", VERSION, paths))

    def _document_3_1(self) -> Response:
        own = {path: methods for path, methods in DESCRIPTION.items() if path != "/docs" or self._for_people}
        paths = {**self._paths(self._routes), **_own_paths(own)}
        kinds = " and ".join(listener.value for listener in self._listeners)
        return json_response(self._document("3.1.0", f"Mariner {kinds} API", VERSION, paths))

    def _document_of(self, model: str, listener: Listener) -> _Json:
        ours = (r for r in self._routes if r.listener is listener and "{model_name}" in r.path)
        if listener is Listener.INFERENCE:
            title = f"RESTful API for: {model}"
            routes = [route for route in ours if route.handler_input]
        else:
            title = f"RESTful Management API for: {model}"
            routes = [route for route in ours if route.path.startswith("/models/")]
        return self._document("3.0.1", title, "1.0.0", self._paths(routes, model))

    def _document(self, openapi: str, title: str, version: str, paths: _Json) -> _Json:
        components = _components(paths)
        if schemes := dict(self._security_schemes()):
            components["securitySchemes"] = schemes
        return {
            "openapi": openapi,
            "info": {"title": title, "description": _ABOUT, "version": version},
            "paths": paths,
            "components": components,
        }

    def _paths(self, routes: Iterable[Route], model: str | None = None) -> _Json:
        paths: _Json = {}
        for route in routes:
            path = route.path.replace("*}", "}")
            if model is not None:
                path = path.replace("{model_name}", quote(model, safe=""))
            for method, operation in OPERATIONS.get((route.listener, route.path), {}).items():
                if route.methods == ("*",) or method.upper() in route.methods:
                    described = _operation(route.summary, operation, _path_parameters(path))
                    if model is not None:
                        described["operationId"] = _model_operation_id(operation.id, model)
                    if security := self._security(route.listener):
                        described["security"] = security
                    paths.setdefault(path, {})[method] = described
        return paths

    # -- keys --------------------------------------------------------------------------------------------------------

    def _security(self, listener: Listener) -> list[_Json]:
        if self._access.keys is None or not self._access.guards(listener):
            return []
        key: _Json = {f"{listener.value}Key": []}
        # Otherwise only some callers need it, and which ones is not a matter of the document.
        return [key] if self._access.mode is TokenMode.ON else [{}, key]

    def _security_schemes(self) -> Iterator[tuple[str, _Json]]:
        for listener in self._listeners:
            if self._security(listener):
                yield (
                    f"{listener.value}Key",
                    {
                        "type": "http",
                        "scheme": "bearer",
                        "description": f"The {listener.value} key, see key_file.json where the server was started.",
                    },
                )


def _send(exchange: Exchange, response: Response) -> None:
    exchange.respond(response.status, response.headers, response.body)


# -- parts of documents ------------------------------------------------------------------------------------------------


def _operation(summary: str, operation: Operation, path_parameters: Iterable[_Json] = ()) -> _Json:
    described: _Json = {"operationId": operation.id, "tags": [operation.tag], "summary": summary}
    if operation.description:
        described["description"] = operation.description
    if operation.deprecated:
        described["deprecated"] = True
    if parameters := [*path_parameters, *map(_parameter, operation.parameters)]:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "content": {media: _content(body.schema, body.example) for media, body in operation.body.items()}
        }
    answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    described["responses"] = {**_errors(operation.errors), **answers}  # a handler's 500 is no error of ours
    return described


def _path_parameters(path: str) -> Iterator[_Json]:
    for name in _CAPTURES.findall(path):
        yield {"name": name, "in": "path", "required": True, **_described(PATH_PARAMETERS[name])}


def _parameter(parameter: Parameter) -> _Json:
    described: _Json = {"name": parameter.name, "in": parameter.place, **_described(parameter.schema)}
    if parameter.deprecated:
        described["deprecated"] = True
    return described


def _described(schema: Schema) -> _Json:
    """The description of a parameter stands beside its schema."""
    inner = {key: value for key, value in schema.items() if key != "description"}
    return {"description": schema.get("description", ""), "schema": inner}


def _content(schema: Schema, example: Any) -> _Json:
    return {"schema": schema} if example is None else {"schema": schema, "example": example}


def _answer(answer: Answer) -> _Json:
    return {
        "description": answer.description,
        "headers": _ID_HEADER,
        "content": {answer.media: _content(answer.schema, answer.example)},
    }


def _errors(names: Iterable[str]) -> _Json:
    """Errors by status, and one entry for those that are not worth a line of their own."""
    responses = {"default": ".".join(_OTHER)}
    responses.update((status, ".".join(same)) for status, same in _by_status(names).items())
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in responses.items()}


def _by_status(names: Iterable[str]) -> dict[str, list[str]]:
    by_status: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: ERRORS[name].status):
        by_status.setdefault(str(ERRORS[name].status), []).append(name)
    return by_status


def _error_responses() -> Iterator[tuple[str, _Json]]:
    """What operations share: a response for each set of errors of one status."""
    everything = [operation for methods in OPERATIONS.values() for operation in methods.values()]
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


def _error_example(error: MarinerError) -> _Json:
    body = {"code": error.status, "type": error.wire_name, "message": error.message}
    added = {"reason": error.reason, "hint": error.hint, "request_id": REQUEST_ID}
    return {"summary": _meaning(error), "value": body | {name: value for name, value in added.items() if value}}


def _own_paths(own: Mapping[str, Mapping[str, tuple[str, Operation]]]) -> _Json:
    return {
        path: {method: _operation(summary, operation) for method, (summary, operation) in methods.items()}
        for path, methods in own.items()
    }


def _components(paths: _Json) -> _Json:
    """The parts that the paths refer to, directly or not."""
    used: dict[str, _Json] = {}
    waiting: list[Any] = [paths]
    while waiting:
        for kind, name in _REFERENCE.findall(orjson.dumps(waiting.pop()).decode()):
            if name not in used.setdefault(kind, {}):
                used[kind][name] = _COMPONENTS[kind][name]
                waiting.append(used[kind][name])
    return used


def _model_operation_id(id_: str, model: str) -> str:
    return model if id_ == "predictions" else f"{id_}_{model}"


_REFERENCE = re.compile(r'"\$ref":"#/components/(\w+)/([\w.]+)"')
_COMPONENTS: dict[str, _Json] = {
    "schemas": SCHEMAS,
    "headers": {
        "RequestId": {
            "description": "Id of the request, also in the log.",
            "schema": {"type": "string", "format": "uuid"},
        }
    },
    "responses": dict(_error_responses()),
}


# -- the page ----------------------------------------------------------------------------------------------------------


def _page() -> Response:
    html = files("mariner.http").joinpath("static/docs.html").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; "
        f"script-src {_digest(html, 'script')}; style-src {_digest(html, 'style')}; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers: HeaderPairs = (
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", policy),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    )
    return Response(200, html.encode(), headers)


def _digest(html: str, tag: str) -> str:
    """What lets the one script, or style, of the page run, and no other."""
    _, _, rest = html.partition(f"<{tag}>")
    content, _, _ = rest.partition(f"</{tag}>")
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
