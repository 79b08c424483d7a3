"""The table of routes: one row per operation. What becomes of a row is in :mod:`mariner.http.app`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mariner.auth import Listener
from mariner.http import inference, kserve, management, metrics, traffic

__all__ = ["ANY", "HEALTH", "ROUTES", "Route"]

ANY = ("*",)
HEALTH = "/v2/health/"  # these paths are about the server, not its models


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
        probe: tells load balancers about health: served on every listener, and open unless every call needs a key.
        access: the function gets the access rules instead of the model server.
    """

    listener: Listener
    methods: tuple[str, ...]
    path: str
    function: Callable[..., Any]
    summary: str
    model_api: bool = False
    handler_input: bool = False
    probe: bool = False
    access: bool = False


_I, _M = Listener.INFERENCE, Listener.MANAGEMENT
_MODEL, _VERSION = "/models/{model_name}", "/models/{model_name}/{model_version}"
_V1, _V2 = "/v1/models/{model_name}", "/v2/models/{model_name}"
_V2_VERSION = _V2 + "/versions/{model_version}"

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
    Route(_I, ANY, "/invocations", inference.invocations,
          "Prediction of the model that the query or a form field names, or of the only one loaded at start.",
          handler_input=True),
    Route(_I, ANY, _MODEL + "/invoke", inference.invoke,
          "Prediction of the default version, as SageMaker asks for it.", handler_input=True),
    Route(_I, ANY, "/{model_name}/predict", inference.invoke,
          "Prediction of the default version, by an older path.", handler_input=True),
    Route(_I, ANY, "/{model_name}/{model_version}/predict", inference.invoke,
          "Prediction of a version, by an older path.", handler_input=True),
    Route(_I, ("GET",), "/v1/models", kserve.list_models, "Names of the registered models.", probe=True),
    Route(_I, ANY, _V1 + ":predict", kserve.predict,
          "Prediction of the default version, KServe v1.", handler_input=True),
    Route(_I, ANY, _V1 + ":explain", kserve.explain,
          "Explanation by the default version, KServe v1.", handler_input=True),
    Route(_I, ("GET",), _V1, kserve.model_ready, "Whether the default version is ready, KServe v1.", probe=True),
    Route(_I, ANY, "/v2", kserve.server_metadata, "Name, version and protocol extensions of the server."),
    Route(_I, ANY, "/v2/health/live", kserve.live, "The server runs.", probe=True),
    Route(_I, ANY, "/v2/health/ready", kserve.ready, "Every model loaded at start is ready.", probe=True),
    Route(_I, ("GET",), "/v2/models", kserve.list_models, "Names of the registered models."),
    Route(_I, ("GET",), _V2, kserve.model_metadata, "Versions, platform and tensors of a model."),
    Route(_I, ("GET",), _V2_VERSION, kserve.model_metadata, "Platform and tensors of a version."),
    Route(_I, ("GET",), _V2 + "/ready", kserve.version_ready, "Whether the default version is ready.", probe=True),
    Route(_I, ("GET",), _V2_VERSION + "/ready", kserve.version_ready, "Whether a version is ready.", probe=True),
    Route(_I, ANY, _V2 + "/infer", kserve.predict,
          "Prediction of the default version, open inference protocol.", handler_input=True),
    Route(_I, ANY, _V2_VERSION + "/infer", kserve.predict,
          "Prediction of a version, open inference protocol.", handler_input=True),
    Route(_I, ANY, _V2 + "/explain", kserve.explain,
          "Explanation by the default version, in tensors.", handler_input=True),
    Route(_I, ANY, _V2_VERSION + "/explain", kserve.explain,
          "Explanation by a version, in tensors.", handler_input=True),
    Route(_M, ("GET",), "/models", management.list_models, "Registered models."),
    Route(_M, ("POST",), "/models", management.register, "Register a model.", model_api=True),
    Route(_M, ("GET",), _MODEL, management.describe, "Describe the default version."),
    Route(_M, ("PUT",), _MODEL, management.scale, "Scale the workers of the default version."),
    Route(_M, ("DELETE",), _MODEL, management.unregister, "Unregister the default version.", model_api=True),
    Route(_M, ("GET",), _MODEL + "/deaths", management.deaths, "Why workers of the default version died."),
    Route(_M, ("GET",), _MODEL + "/traffic", traffic.show_traffic, "Which version gets how many requests."),
    Route(_M, ("PUT",), _MODEL + "/traffic", traffic.share_traffic,
          "Divide the requests that name no version among versions."),
    Route(_M, ("GET",), _VERSION, management.describe, "Describe a version, or all."),
    Route(_M, ("PUT",), _VERSION, management.scale, "Scale the workers of a version."),
    Route(_M, ("DELETE",), _VERSION, management.unregister, "Unregister a version.", model_api=True),
    Route(_M, ("GET",), _VERSION + "/deaths", management.deaths, "Why workers of a version died."),
    Route(_M, ("PUT",), _VERSION + "/set-default", management.set_default, "Make a version the default."),
    Route(_M, ("PUT",), _VERSION + "/reload", traffic.reload_version,
          "Replace a version by what its archive is now.", model_api=True),
    Route(_M, ANY, "/token", management.renew_key, "Replace the inference or the management key.", access=True),
    Route(Listener.METRICS, ANY, "/metrics", metrics.expose, "Metrics in Prometheus' text format."),
    Route(Listener.METRICS, ANY, "/metrics/{rest*}", metrics.expose, "Metrics in Prometheus' text format."),
)
# fmt: on
