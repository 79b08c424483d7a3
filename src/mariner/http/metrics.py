"""Routes of the metrics listener."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mariner.http.exchange import Exchange
from mariner.http.messages import Response, query_values

if TYPE_CHECKING:
    from mariner.model_server import ModelServer

__all__ = ["expose"]

_TEXT = (("content-type", "text/plain; version=0.0.4; charset=utf-8"),)


async def expose(server: ModelServer, exchange: Exchange, _rest: str = "") -> Response:
    """Metrics in Prometheus' text format; ``name[]=A&name[]=B`` picks some."""
    names = query_values(exchange.raw_query, "name[]")
    return Response(body=server.metrics.expose(names or None).encode(), headers=_TEXT)
