"""Routes that decide which version of a model gets how many of its requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
    """Divides the requests that name no version, and sets the shadow; a body without either undoes it."""
    body = read_object(exchange)
    if unknown := sorted(body.keys() - {"weights", "shadow"}):
        raise BadRequest(
            f"There is no parameter {', '.join(unknown)}.", hint="The body has weights, a shadow, or both."
        )
    weights = body.get("weights") or {}
    if not isinstance(weights, dict):
        raise BadRequest(
            "weights must be an object of versions and numbers.", hint='Send {"weights": {"1.0": 70, "2.0": 30}}.'
        )
    server.share_traffic(model, weights, _read_shadow(body.get("shadow")))
    return json_response(_describe(server, model))


def _read_shadow(shadow: Any) -> tuple[str, float] | None:
    if shadow is None:
        return None
    if (
        not isinstance(shadow, dict)
        or not isinstance(shadow.get("version"), str)
        or shadow.keys() != {"version", "percentage"}
    ):
        raise BadRequest(
            "shadow must be an object with a version and a percentage.",
            hint='Send {"shadow": {"version": "2.0", "percentage": 10}}.',
        )
    return shadow["version"], shadow["percentage"]


async def reload_version(server: ModelServer, _exchange: Exchange, model: str, version: str) -> Response:
    """Puts what the archive of a version is now into its place."""
    new = await server.reload_version(model, version)
    return status_response(f'Model "{model}" version {version} replaced by version {new.version}')


def _describe(server: ModelServer, model: str) -> dict[str, object]:
    default, shadow = server.registry.get(model).version, server.registry.shadow(model)
    shown: dict[str, object] = {
        "modelName": model,
        "defaultVersion": default,
        "weights": server.registry.weights(model),
    }
    if shadow is not None:
        shown["shadow"] = {"version": shadow.version, "percentage": shadow.percentage, **asdict(shadow.counts)}
    return shown
