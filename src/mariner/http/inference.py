"""Routes of the inference listener. Callbacks, not coroutines: a prediction costs no task and no future."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from mariner.errors import BadRequest
from mariner.http.exchange import Exchange
from mariner.http.messages import read_query, read_request, status_response, write_outcome
from mariner.http.timing import TimedDelivery, Write
from mariner.jobs import Request, Shared

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["explain", "invocations", "invoke", "ping", "predict", "submit"]

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
    submit(server, exchange, model, version, injected, with_query=with_query)


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
    submit(server, exchange, model, version, injected, with_query=with_query, alone=True)


def invoke(
    server: ModelServer, exchange: Exchange, model: str, version: str | None = None, *, with_query: bool = True
) -> None:
    """Runs the model's handler on query and body; it is told nothing else."""
    submit(server, exchange, model, version, (), with_query=with_query)


def invocations(server: ModelServer, exchange: Exchange, *, with_query: bool = True) -> None:
    """Runs the handler of the model that the query names, else of the only one loaded at start, else of the field.

    Raises:
        BadRequest: none of them names a model.
    """
    parameters = read_query(exchange.raw_query)
    model = parameters.get("model_name") or server.only_initial_model()
    submit(server, exchange, model, None, (), with_query=with_query)


def submit(
    server: ModelServer,
    exchange: Exchange,
    model: str | None,
    version: str | None,
    injected: tuple[bytes, ...],
    *,
    write: Write = write_outcome,
    with_query: bool = False,
    alone: bool = False,
) -> None:
    """Queues a request; its answer is written when it comes.

    Args:
        server: the use cases.
        exchange: the request.
        model: name of the model; None if the field ``model_name`` of the request's form holds it.
        version: its version, None for the default one.
        injected: what the handler finds among the headers, see :func:`read_request`.
        write: writes the outcome.
        with_query: the handler gets the query parameters, too.
        alone: it shares its batch with no other. Handlers look at the first request to see what is asked of them.

    Raises:
        MarinerError: the request is malformed or cannot be served.
    """
    request, slot = read_request(exchange, injected, with_query=with_query)
    if model is None:
        model = _named_model(request)
    timeout = None
    if b"x-request-timeout-ms" in exchange.fields:
        timeout = _read_timeout(exchange.fields[b"x-request-timeout-ms"])
    ration = exchange.connection.ration
    if ration.left > 0:
        ration.left -= 1
        deliver = TimedDelivery(exchange, write, server.now)
        job = deliver.job = server.submit(model, version, request, deliver, slot=slot, timeout=timeout, alone=alone)
    else:
        job = server.submit(model, version, request, partial(write, exchange), slot=slot, timeout=timeout, alone=alone)
    exchange.body = b""  # the job's from here on
    exchange.on_cancel = job.cancel


def _named_model(request: Request) -> str:
    for part in request.parts:
        if part.name == "model_name" and part.value and not isinstance(part.value, Shared):
            return str(part.value, "utf-8", "replace")
    raise BadRequest("Parameter model_name is required.")


def _read_timeout(value: bytes) -> float:
    if not value.isdigit() or not int(value[:18]):
        raise BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0.")
    return int(value[:18]) / 1000


def _url_path(rest: str) -> bytes:
    # Headers travel as Latin-1 text separated by NUL; a path may be anything.
    if not rest.isprintable() or not rest.isascii():
        rest = quote(rest, safe="/")
    return rest.encode()
