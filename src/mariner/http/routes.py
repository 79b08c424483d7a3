"""The table of routes: one row per operation. What becomes of a row is in :mod:`mariner.http.app`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mariner.auth import Listener
from mariner.http import inference, management, metrics

__all__ = ["ANY", "ROUTES", "Route"]

ANY = ("*",)


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
ROUTES: tuple[Route, ...] = (
    Route(_I, ANY, "/ping", inference.ping, "Health of the models."),
    Route(_I, ANY, "/ping/{rest*}", inference.ping, "Health of the models."),
    Route(_I, ANY, "/predictions/{model_name}", inference.predict,
          "Prediction of the default version.", handler_input=True),
    Route(_I, ANY, "/predictions/{model_name}/{model_version}", inference.predict,
          "Prediction of a version.", handler_input=True),
    Route(_I, ANY, "/predictions/{model_name}/{model_version}/{url_path*}", inference.predict,
          "Prediction of a version; the handler sees the rest of the path.", handler_input=True),
    Route(_I, ANY, "/explanations/{model_name}", inference.explain,
          "Explanation by the default version.", handler_input=True),
    Route(_I, ANY, "/explanations/{model_name}/{model_version}", inference.explain,
          "Explanation by a version.", handler_input=True),
    Route(_I, ANY, "/explanations/{model_name}/{model_version}/{url_path*}", inference.explain,
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
    Route(Listener.METRICS, ANY, "/metrics", metrics.expose, "Metrics in Prometheus' text format."),
    Route(Listener.METRICS, ANY, "/metrics/{rest*}", metrics.expose, "Metrics in Prometheus' text format."),
)
# fmt: on
