"""The routes and what all of them share: access, errors, CORS. One :class:`App` per listener."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mariner.auth import Access, Listener
from mariner.errors import ConfigurationError, InternalError, MarinerError, MethodNotAllowed, NotFound
from mariner.http import inference, management, metrics
from mariner.http.exchange import Exchange, HeaderPairs, encode_headers
from mariner.http.messages import Response, decode_path, write_error
from mariner.http.openapi import ApiDescription

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["ROUTES", "App", "Route"]

logger = logging.getLogger(__name__)

_NOT_FOUND = "Requested resource is not found, please refer to API document."
_NOT_ALLOWED = "Requested method is not allowed, please refer to API document."
_ANY = ("*",)
_MAX_KNOWN, _MAX_TARGET = 1024, 256  # a client that makes up targets costs itself this shortcut, and us little memory


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Attributes:
        listener: where it is served, and whose access rules apply.
        methods: HTTP methods; ``*`` for all.
        path: template; ``{name}`` is one segment, ``{name*}`` any number of them.
        function: a callback that answers the exchange itself, or a coroutine function that returns a ``Response``.
            Called with the model server, the exchange and what the template captures, in order.
        summary: one line for people.
        model_api: changes which models there are; may be switched off.
        handler_input: the request goes to a handler, query parameters too if the setting says so.
    """

    listener: Listener
    methods: tuple[str, ...]
    path: str
    function: Callable[..., Any]
    summary: str
    model_api: bool = False
    handler_input: bool = False


_I, _M = Listener.INFERENCE, Listener.MANAGEMENT
_MODEL, _VERSION = "/models/{model_name}", "/models/{model_name}/{model_version}"

# fmt: off
ROUTES = (
    Route(_I, _ANY, "/ping", inference.ping, "Health of the models."),
    Route(_I, _ANY, "/ping/{rest*}", inference.ping, "Health of the models."),
    Route(_I, _ANY, "/predictions/{model_name}", inference.predict,
          "Prediction of the default version.", handler_input=True),
    Route(_I, _ANY, "/predictions/{model_name}/{model_version}", inference.predict,
          "Prediction of a version.", handler_input=True),
    Route(_I, _ANY, "/predictions/{model_name}/{model_version}/{url_path*}", inference.predict,
          "Prediction of a version; the handler sees the rest of the path.", handler_input=True),
    Route(_I, _ANY, "/explanations/{model_name}", inference.explain,
          "Explanation by the default version.", handler_input=True),
    Route(_I, _ANY, "/explanations/{model_name}/{model_version}", inference.explain,
          "Explanation by a version.", handler_input=True),
    Route(_I, _ANY, "/explanations/{model_name}/{model_version}/{url_path*}", inference.explain,
          "Explanation by a version; the handler sees the rest of the path.", handler_input=True),
    Route(_M, ("GET",), "/models", management.list_models, "Registered models."),
    Route(_M, ("POST",), "/models", management.register, "Register a model.", model_api=True),
    Route(_M, ("GET",), _MODEL, management.describe, "Describe the default version."),
    Route(_M, ("PUT",), _MODEL, management.scale, "Scale the workers of the default version."),
    Route(_M, ("DELETE",), _MODEL, management.unregister, "Unregister the default version.", model_api=True),
    Route(_M, ("GET",), _VERSION, management.describe, "Describe a version, or all."),
    Route(_M, ("PUT",), _VERSION, management.scale, "Scale the workers of a version."),
    Route(_M, ("DELETE",), _VERSION, management.unregister, "Unregister a version.", model_api=True),
    Route(_M, ("PUT",), _VERSION + "/set-default", management.set_default, "Make a version the default."),
    Route(Listener.METRICS, _ANY, "/metrics", metrics.expose, "Metrics in Prometheus' text format."),
    Route(Listener.METRICS, _ANY, "/metrics/{rest*}", metrics.expose, "Metrics in Prometheus' text format."),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class _Operation:
    """A route, ready to be called."""

    route: Route
    call: Callable[..., Any]
    is_callback: bool


@dataclass(frozen=True, slots=True)
class _Resource:
    """The operations on one path."""

    pattern: tuple[str | None, ...]  # a literal segment, or None for a captured one
    open_ended: bool  # the last one captures the rest
    operations: dict[str, _Operation]

    @property
    def route(self) -> Route:
        """One of its routes."""
        return next(iter(self.operations.values())).route

    def captures(self, segments: list[str]) -> list[str] | None:
        """The captured segments; None if the path is another one."""
        fixed = len(self.pattern)
        if len(segments) <= fixed if self.open_ended else len(segments) != fixed:
            return None
        captured = []
        for literal, segment in zip(self.pattern, segments, strict=False):
            if literal is None and segment:
                captured.append(segment)
            elif literal != segment:
                return None
        if self.open_ended:
            captured.append("/".join(segments[fixed:]))
        return captured


class App:
    """Answers the exchanges of one listener.

    Args:
        server: the use cases.
        access: who may call what.
        listeners: kinds of routes served; several if their addresses are equal.
        cors: response headers for browsers, added to every answer that does not set them.
        pass_query_parameters: handlers see query parameters on ``/predictions``, too.

    Raises:
        ConfigurationError: HTTP does not allow a CORS header.
    """

    def __init__(
        self,
        server: ModelServer,
        access: Access,
        listeners: Collection[Listener],
        *,
        cors: HeaderPairs = (),
        pass_query_parameters: bool = False,
    ) -> None:
        try:
            encode_headers(cors)
        except ValueError as error:
            raise ConfigurationError(f"A CORS setting cannot be sent. {error}.") from error
        self.default_headers = cors
        self.finished: Callable[[int], None] = server.metrics.requests_finished
        self._access = access
        # An unknown path is guarded as the first of these is: nobody learns without a key what exists.
        self._main = next(listener for listener in Listener if listener in listeners)
        self._guarded = frozenset(listener for listener in listeners if access.guards(listener))
        self._preflight = "access-control-allow-origin" in {name.lower() for name, _ in cors}
        # Targets that go straight to a callback, whatever the method and whoever calls.
        self._known: dict[bytes, tuple[Callable[..., Any], list[str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        routes = [route for route in ROUTES if route.listener in listeners]
        self._families = _make_families(routes, server, with_query=pass_query_parameters)
        self._description = ApiDescription(server, access, listeners, routes)

    def handle(self, exchange: Exchange) -> None:
        """Answers now or later; never raises."""
        try:
            known = self._known.get(exchange.target)
            if known is not None and exchange.method != "OPTIONS":
                known[0](exchange, *known[1])
            else:
                self._dispatch(exchange)
        except Exception as error:  # noqa: BLE001 - the error hook
            self._report(exchange, error)

    def refuse(self, exchange: Exchange, error: MarinerError) -> None:
        """Answers with an error at once."""
        write_error(exchange, error)

    async def close(self) -> None:
        """Waits for the calls that still run, though nobody may be waiting for their answers."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _dispatch(self, exchange: Exchange) -> None:
        path = decode_path(exchange.raw_path).rstrip("/")
        segments = path.split("/")[1:]
        family = self._families.get(segments[0]) if segments else None
        listener = self._main if family is None else family[0]
        if self._preflight and exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.fields:
            exchange.respond()  # a browser asks without a key; the answer is in the CORS headers
            return
        if self._description.answer(exchange, path):
            return  # before keys are asked for: what there is to call is no secret
        if listener in self._guarded:
            self._access.check(
                listener=listener,
                peer=exchange.peer,
                headers=exchange.headers,
                method=exchange.method,
                path="/" + "/".join(segments),
            )
        for resource in () if family is None else family[1]:
            captured = resource.captures(segments)
            if captured is not None:
                self._call(exchange, resource, captured)
                return
        if not segments:
            raise MethodNotAllowed(_NOT_ALLOWED)
        raise NotFound(_NOT_FOUND)

    def _call(self, exchange: Exchange, resource: _Resource, captured: list[str]) -> None:
        if exchange.method == "OPTIONS" and self._description.answer_for_model(exchange, resource.route, captured):
            return  # the handler must not see it
        operation = resource.operations.get(exchange.method) or resource.operations.get("*")
        if operation is None:
            allow = ", ".join(sorted(resource.operations))
            write_error(exchange, MethodNotAllowed(_NOT_ALLOWED), (("Allow", allow),))
            return
        route = operation.route
        if route.model_api and not self._access.model_api_allowed(peer=exchange.peer, headers=exchange.headers):
            raise MethodNotAllowed(
                _NOT_ALLOWED,
                hint="Models may be registered and unregistered from the server's own machine or with the management "
                "key; enable_model_api=true allows every caller that passes authorization.",
            )
        if operation.is_callback:
            operation.call(exchange, *captured)
            if route.methods == _ANY and route.listener not in self._guarded and len(exchange.target) <= _MAX_TARGET:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[exchange.target] = operation.call, captured
        else:
            name = f"{exchange.method} {route.path} {exchange.id}"
            task = asyncio.get_running_loop().create_task(self._run(exchange, operation.call, captured), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, exchange: Exchange, call: Callable[..., Any], captured: list[str]) -> None:
        # Goes on if the client leaves: half a registration would help nobody.
        try:
            response: Response = await call(exchange, *captured)
            exchange.respond(response.status, response.headers, response.body)
        except Exception as error:  # noqa: BLE001 - the error hook
            self._report(exchange, error)

    def _report(self, exchange: Exchange, error: Exception) -> None:
        if not isinstance(error, MarinerError):
            logger.error("Request %s failed", exchange.id, exc_info=error)
            error = InternalError(
                "Internal server error.", hint=f"The log of the server has the cause under request id {exchange.id}."
            )
        write_error(exchange, error)


def _make_families(
    routes: Iterable[Route], server: ModelServer, *, with_query: bool
) -> dict[str, tuple[Listener, list[_Resource]]]:
    """Routes by the first segment of their paths, so that a prediction does not look at the others."""
    families: dict[str, tuple[Listener, list[_Resource]]] = {}
    by_path: dict[str, _Resource] = {}
    for route in routes:
        resource = by_path.get(route.path)
        if resource is None:
            segments = route.path.split("/")[1:]
            open_ended = segments[-1].endswith("*}")
            pattern = [None if segment.startswith("{") else segment for segment in segments]
            resource = _Resource(tuple(pattern[:-1] if open_ended else pattern), open_ended, {})
            by_path[route.path] = resource
            families.setdefault(segments[0], (route.listener, []))[1].append(resource)
        call: Callable[..., Any] = partial(route.function, server)
        if route.handler_input and with_query:
            call = partial(call, with_query=True)
        for method in route.methods:
            resource.operations[method] = _Operation(route, call, not inspect.iscoroutinefunction(route.function))
    return families
