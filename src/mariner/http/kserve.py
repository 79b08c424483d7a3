"""Routes of KServe's protocols: v1, and v2, which is also called the open inference protocol.

They name a model and carry a body, no more: whether the body must hold instances or tensors depends on the model's
envelope, and without one the handler gets it as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mariner.http.exchange import Exchange
from mariner.http.inference import submit
from mariner.http.messages import json_response, write_outcome
from mariner.jobs import Outcome, Reply
from mariner.lifecycle import Readiness

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = [
    "explain",
    "list_models",
    "live",
    "model_metadata",
    "model_ready",
    "predict",
    "ready",
    "server_metadata",
    "version_ready",
]

_PREDICT = (b"explain", b"False")
_EXPLAIN = (b"explain", b"True")
_JSON = b"content-type\0application/json"
_EXTENSIONS = ("kserve", "kubeflow")


# -- inference -------------------------------------------------------------------------------------------------------


def predict(
    server: ModelServer, exchange: Exchange, model: str, version: str | None = None, *, with_query: bool = False
) -> None:
    """Runs the model's handler on the body."""
    submit(server, exchange, model, version, _PREDICT, write=_write_outcome, with_query=with_query)


def explain(
    server: ModelServer, exchange: Exchange, model: str, version: str | None = None, *, with_query: bool = False
) -> None:
    """Runs the model's handler on the body and asks it for an explanation."""
    submit(server, exchange, model, version, _EXPLAIN, write=_write_outcome, with_query=with_query, alone=True)


def _write_outcome(exchange: Exchange, outcome: Outcome, lines: bytes = b"") -> None:
    """Says that JSON is JSON, which clients of these protocols expect, unless the handler says what it is."""
    if isinstance(outcome, Reply) and not outcome.failed and not outcome.more and _is_json(bytes(outcome.body)):
        headers = _JSON + b"\0" + outcome.headers if outcome.headers else _JSON
        outcome = outcome._replace(headers=headers)
    write_outcome(exchange, outcome, lines)


def _is_json(body: bytes) -> bool:
    return body[:1] + body[-1:] in {b"{}", b"[]"}


# -- health and metadata ---------------------------------------------------------------------------------------------


def live(_server: ModelServer, exchange: Exchange) -> None:
    """The process answers: no model is asked."""
    _respond(exchange, {"live": True})


def ready(server: ModelServer, exchange: Exchange) -> None:
    """Every model that was to be loaded at start is ready, and none is broken."""
    condition = server.condition()
    if condition is Readiness.READY:
        _respond(exchange, {"ready": True})
    else:
        _respond(exchange, {"ready": False, "state": condition.value}, 503)


def model_ready(server: ModelServer, exchange: Exchange, model: str) -> None:
    """Whether the default version is ready; as v1 does, with status 200 either way."""
    _respond(exchange, {"name": model, "ready": server.serves(model, None)})


def version_ready(server: ModelServer, exchange: Exchange, model: str, version: str | None = None) -> None:
    """Whether a version is ready; the status says it too.

    A version that is loaded on demand is: nothing would ever load it if nobody sent it a request.
    """
    serves, readiness = server.serves(model, version), server.readiness(model, version)
    answer: dict[str, Any] = {"name": model, "ready": serves, "state": readiness.value}
    if serves:
        _respond(exchange, answer)
    else:
        error = f"Model {model} is not ready: it is {readiness.value}."
        _respond(exchange, {**answer, "error": error}, 503)


def list_models(server: ModelServer, exchange: Exchange) -> None:
    """Names of the registered models."""
    _respond(exchange, {"models": [name for name, _ in server.list_models()]})


def server_metadata(server: ModelServer, exchange: Exchange) -> None:
    """Name, version and protocol extensions of the server."""
    answer = {
        "name": "Torchserve",
        "version": server.config.version,
        "extensions": [*_EXTENSIONS, "binary_tensor_data"],
        "extenstion": _EXTENSIONS,  # how TorchServe spells it
    }
    _respond(exchange, answer)


def model_metadata(server: ModelServer, exchange: Exchange, model: str, version: str | None = None) -> None:
    """Versions and platform of a model; handlers do not declare their tensors, so there are none to tell."""
    metadata = server.metadata(model, version)
    answer = {
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": [],
        "outputs": [],
    }
    _respond(exchange, answer)


def _respond(exchange: Exchange, value: dict[str, Any], status: int = 200) -> None:
    response = json_response(value, status)
    exchange.respond(response.status, response.headers, response.body)
