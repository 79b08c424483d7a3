"""Routes of the inference listener. Callbacks, not coroutines: a prediction costs no task and no future."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from mariner.errors import BadRequest
from mariner.http.exchange import Exchange
from mariner.http.messages import read_request, status_response, write_outcome

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["explain", "ping", "predict"]

_PREDICT = (b"url_path", b"", b"explain", b"False")
_EXPLAIN = (b"url_path", b"", b"explain", b"True")


def ping(server: ModelServer, exchange: Exchange, _rest: str = "") -> None:
    """Health of the models; what load balancers and probes ask."""
    healthy = server.healthy()
    response = status_response("Healthy" if healthy else "Unhealthy", 200 if healthy else 500)
    exchange.respond(response.status, response.headers, response.body)


def predict(
    server: ModelServer,
    exchange: Exchange,
    model: str,
    version: str | None = None,
    rest: str = "",
    *,
    with_query: bool = False,
) -> None:
    """Runs the model's handler on the body."""
    injected = (b"url_path", _url_path(rest), *_PREDICT[2:]) if rest else _PREDICT
    _submit(server, exchange, model, version, injected, with_query=with_query)


def explain(
    server: ModelServer,
    exchange: Exchange,
    model: str,
    version: str | None = None,
    rest: str = "",
    *,
    with_query: bool = False,
) -> None:
    """Runs the model's handler on the body and asks it for an explanation."""
    injected = (b"url_path", _url_path(rest), *_EXPLAIN[2:]) if rest else _EXPLAIN
    _submit(server, exchange, model, version, injected, with_query=with_query)


def _submit(
    server: ModelServer,
    exchange: Exchange,
    model: str,
    version: str | None,
    injected: tuple[bytes, ...],
    *,
    with_query: bool,
) -> None:
    request, slot = read_request(exchange, injected, with_query=with_query)
    timeout = None
    if b"x-request-timeout-ms" in exchange.fields:
        timeout = _read_timeout(exchange.fields[b"x-request-timeout-ms"])
    job = server.submit(model, version, request, partial(write_outcome, exchange), slot=slot, timeout=timeout)
    exchange.body = b""  # the job's from here on
    exchange.on_cancel = job.cancel


def _read_timeout(value: bytes) -> float:
    if not value.isdigit() or not int(value[:18]):
        raise BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0.")
    return int(value[:18]) / 1000


def _url_path(rest: str) -> bytes:
    # Headers travel as Latin-1 text separated by NUL; a path may be anything.
    if not rest.isprintable() or not rest.isascii():
        rest = quote(rest, safe="/")
    return rest.encode()
