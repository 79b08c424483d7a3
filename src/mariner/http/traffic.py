"""Routes that decide which version of a model gets how many of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mariner.errors import BadRequest
from mariner.http.exchange import Exchange
from mariner.http.messages import Response, json_response, read_object, status_response

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["reload_version", "share_traffic", "show_traffic"]


async def show_traffic(server: ModelServer, _exchange: Exchange, model: str) -> Response:
    """The default version and the weights of a model."""
    return json_response(_describe(server, model))


async def share_traffic(server: ModelServer, exchange: Exchange, model: str) -> Response:
    """Divides the requests that name no version; a body without weights undoes it."""
    body = read_object(exchange)
    weights = body.get("weights") or {}
    if not isinstance(weights, dict):
        raise BadRequest(
            "weights must be an object of versions and numbers.", hint='Send {"weights": {"1.0": 70, "2.0": 30}}.'
        )
    if unknown := sorted(body.keys() - {"weights"}):
        raise BadRequest(f"There is no parameter {', '.join(unknown)}.", hint="The body has weights and nothing else.")
    server.share_traffic(model, weights)
    return json_response(_describe(server, model))


async def reload_version(server: ModelServer, _exchange: Exchange, model: str, version: str) -> Response:
    """Puts what the archive of a version is now into its place."""
    new = await server.reload_version(model, version)
    return status_response(f'Model "{model}" version {version} replaced by version {new.version}')


def _describe(server: ModelServer, model: str) -> dict[str, object]:
    return {
        "modelName": model,
        "defaultVersion": server.registry.get(model).version,
        "weights": server.registry.weights(model),
    }
