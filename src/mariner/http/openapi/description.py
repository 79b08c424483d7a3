"""The API described by itself: OpenAPI documents made from the table of routes, and a page to browse them.

Two versions of OpenAPI from one source. Clients generated for TorchServe ask for 3.0 (``OPTIONS /``) and find its
titles, paths and operation ids; everybody else is better off with 3.1 (``/openapi.json``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from mariner.auth import Access, Listener
from mariner.errors import BadRequest, MethodNotAllowed
from mariner.http.exchange import Exchange
from mariner.http.messages import Response, json_response, read_query, write_error
from mariner.http.openapi.document import CAPTURES, Json, components, operation_object
from mariner.http.openapi.page import docs_page
from mariner.http.openapi.table import DESCRIPTION, OPERATIONS
from mariner.settings import VERSION, TokenMode

if TYPE_CHECKING:
    from mariner.http.routes import Route
    from mariner.model_server import ModelServer

__all__ = ["ApiDescription"]

_ALIAS = "{rest*}"  # such a route takes what follows the path of another one, and ignores it
_ABOUT = "Predictions of PyTorch models, and the management of models and their workers."


class ApiDescription:
    """Answers the calls that ask what else may be called.

    Args:
        server: knows which models there are.
        access: which calls need a key.
        listeners: what the listener is for.
        routes: those it serves.
    """

    def __init__(
        self, server: ModelServer, access: Access, listeners: Collection[Listener], routes: Iterable[Route]
    ) -> None:
        self._server = server
        self._access = access
        self._listeners = [listener for listener in Listener if listener in listeners]
        self._routes = [route for route in routes if not route.path.endswith(_ALIAS)]
        self._makers: dict[str, Callable[[], Response]] = {
            "/api-description": self._document_3_0,
            "/openapi.json": self._document_3_1,
        }
        if self._for_people:
            self._makers["/docs"] = docs_page
        self._made: dict[str, Response] = {}

    def answer(self, exchange: Exchange, path: str) -> bool:
        """Answers, without asking for a key, if the path, which has no slash at its end, is one of ours."""
        if path in {"", "*"} and exchange.method == "OPTIONS":
            path = "/api-description"
        if path not in self._makers:
            return False
        if path != "/api-description" and exchange.method not in {"GET", "HEAD"}:
            error = MethodNotAllowed("Requested method is not allowed, please refer to API document.")
            write_error(exchange, error, (("Allow", "GET, HEAD"),))
            return True
        if path not in self._made:
            self._made[path] = self._makers[path]()
        _send(exchange, self._made[path])
        return True

    def answer_for_model(self, exchange: Exchange, route: Route, captured: Sequence[str]) -> bool:
        """Describes the calls for the model that the request names; False if the route is not about a model.

        Raises:
            BadRequest: the route takes the name from the query, and it is missing.
            ModelNotFound, VersionNotFound: there is no such model or version.
        """
        values = dict(zip(CAPTURES.findall(route.path), captured, strict=False))
        if "model_name" not in values and not route.handler_input:
            return False
        model = values.get("model_name") or read_query(exchange.raw_query).get("model_name")
        if not model:
            raise BadRequest("Parameter model_name is required.")
        version = values.get("model_version")
        self._server.registry.get(model, None if version == "all" else version)
        _send(exchange, json_response(self._document_of(model, self._place(route))))
        return True

    # -- documents ---------------------------------------------------------------------------------------------------

    @property
    def _for_people(self) -> bool:
        """Scrapers, not people, call the metrics listener."""
        return self._listeners != [Listener.METRICS]

    def _place(self, route: Route) -> Listener:
        """Whose rules apply to a route; one of another listener counts as the first of ours."""
        return route.listener if route.listener in self._listeners else self._listeners[0]

    def _document_3_0(self) -> Response:
        # TorchServe lists exactly one path on the metrics listener.
        paths = self._own_paths() if self._for_people else {}
        paths |= self._paths(route for route in self._routes if route.listener in self._listeners)
        if Listener.METRICS not in self._listeners:
            # TorchServe's document has it on every listener, and clients have been generated from that.
            metrics = OPERATIONS[Listener.METRICS]["/metrics"]["get"]
            paths["/metrics"] = {"get": operation_object("Metrics, on the metrics listener.", metrics, "/metrics")}
        return json_response(self._document("3.0.1", "TorchServe APIs", VERSION, paths))

    def _document_3_1(self) -> Response:
        kinds = " and ".join(listener.value for listener in self._listeners)
        paths = self._paths(self._routes) | self._own_paths()
        return json_response(self._document("3.1.0", f"Mariner {kinds} API", VERSION, paths))

    def _document_of(self, model: str, listener: Listener) -> Json:
        ours = (r for r in self._routes if r.listener is listener and "{model_name}" in r.path)
        if listener is Listener.INFERENCE:
            title = f"RESTful API for: {model}"
            routes = [route for route in ours if route.handler_input]
        else:
            title = f"RESTful Management API for: {model}"
            routes = [route for route in ours if route.path.startswith("/models/")]
        return self._document("3.0.1", title, "1.0.0", self._paths(routes, model))

    def _document(self, openapi: str, title: str, version: str, paths: Json) -> Json:
        parts = components(paths)
        if schemes := dict(self._security_schemes()):
            parts["securitySchemes"] = schemes
        return {
            "openapi": openapi,
            "info": {"title": title, "description": _ABOUT, "version": version},
            "paths": paths,
            "components": parts,
        }

    def _own_paths(self) -> Json:
        return {
            path: {
                method: operation_object(summary, operation, path) for method, (summary, operation) in methods.items()
            }
            for path, methods in DESCRIPTION.items()
            if path != "/docs" or self._for_people
        }

    def _paths(self, routes: Iterable[Route], model: str | None = None) -> Json:
        paths: Json = {}
        for route in routes:
            path = route.path.replace("*}", "}")
            if model is not None:
                path = path.replace("{model_name}", quote(model, safe=""))
            for method, operation in OPERATIONS[route.listener].get(route.path, {}).items():
                if route.methods == ("*",) or method.upper() in route.methods:
                    described = operation_object(route.summary, operation, path)
                    if model is not None:
                        described["operationId"] = model if operation.id == "predictions" else f"{operation.id}_{model}"
                    if security := self._security(self._place(route), probe=route.probe):
                        described["security"] = security
                    paths.setdefault(path, {})[method] = described
        return paths

    # -- keys --------------------------------------------------------------------------------------------------------

    def _security(self, listener: Listener, *, probe: bool = False) -> list[Json]:
        if self._access.keys is None or not self._access.guards(listener, probe=probe):
            return []
        key: Json = {f"{listener.value}Key": []}
        # Otherwise only some callers need it, and which ones is not a matter of the document.
        return [key] if self._access.mode is TokenMode.ON else [{}, key]

    def _security_schemes(self) -> Iterator[tuple[str, Json]]:
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
