"""What all routes share: finding one, access, errors, CORS. One :class:`App` per listener."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mariner.auth import Access, Listener
from mariner.errors import ConfigurationError, InternalError, MarinerError, MethodNotAllowed, NotFound, Starting
from mariner.http.exchange import Exchange, HeaderPairs, encode_headers
from mariner.http.messages import Response, decode_path, write_error
from mariner.http.openapi import ApiDescription
from mariner.http.router import Resource, Router
from mariner.http.routes import ANY, HEALTH, ROUTES, Route
from mariner.lifecycle import Phase

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["App"]

logger = logging.getLogger(__name__)

_NOT_FOUND = "Requested resource is not found, please refer to API document."
_NOT_ALLOWED = "Requested method is not allowed, please refer to API document."
_MAX_KNOWN, _MAX_TARGET = 1024, 256  # a client that makes up targets costs itself this shortcut, and us little memory


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
        self._server = server
        self._with_query = pass_query_parameters
        # An unknown path is guarded as the first of these is: nobody learns without a key what exists.
        self._main = next(listener for listener in Listener if listener in listeners)
        self._preflight = "access-control-allow-origin" in {name.lower() for name, _ in cors}
        # Targets that go straight to a callback, whatever the method and whoever calls.
        self._known: dict[bytes, tuple[Callable[..., Any], Sequence[str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        routes = [route for route in ROUTES if route.probe or route.listener in listeners]
        self._router = Router(routes, self._bind)
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

    def _bind(self, route: Route) -> Callable[..., Any]:
        call: Callable[..., Any] = partial(route.function, self._access if route.access else self._server)
        return partial(call, with_query=True) if route.handler_input and self._with_query else call

    def _dispatch(self, exchange: Exchange) -> None:
        path = decode_path(exchange.raw_path).rstrip("/")
        if self._preflight and exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.fields:
            exchange.respond()  # a browser asks without a key; the answer is in the CORS headers
            return
        if self._description.answer(exchange, path):
            return  # before keys are asked for: what there is to call is no secret
        resource, captured = self._router.find(path)
        guard = self._guard(resource)
        if guard is not None:
            self._access.check(
                listener=guard,
                peer=exchange.peer,
                headers=exchange.headers,
                method=exchange.method,
                path=path or "/",
            )
        if self._server.phase is Phase.STARTING and not path.startswith(HEALTH):
            raise Starting("The server is starting: it does not know its models yet.", retry_after=1.0)
        if resource is not None:
            self._call(exchange, resource, captured, is_open=guard is None)
        elif path.startswith("/"):
            raise NotFound(_NOT_FOUND)
        else:
            raise MethodNotAllowed(_NOT_ALLOWED)

    def _guard(self, resource: Resource | None) -> Listener | None:
        """Whose access rules a call has to pass; None if nobody's."""
        is_probe = resource is not None and resource.route.probe
        listener = self._main if resource is None or is_probe else resource.route.listener
        return listener if self._access.guards(listener, probe=is_probe) else None

    def _call(self, exchange: Exchange, resource: Resource, captured: Sequence[str], *, is_open: bool) -> None:
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
            if is_open and route.methods == ANY and len(exchange.target) <= _MAX_TARGET:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[exchange.target] = operation.call, captured
        else:
            name = f"{exchange.method} {route.path} {exchange.id}"
            task = asyncio.get_running_loop().create_task(self._run(exchange, operation.call, captured), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, exchange: Exchange, call: Callable[..., Any], captured: Sequence[str]) -> None:
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
