"""Which operation a path means."""

from __future__ import annotations

import pytest

from mariner.auth import Listener
from mariner.http.router import Router
from mariner.http.routes import ROUTES

EVERYTHING = Router(ROUTES, lambda route: route.function)


def template(path: str, router: Router = EVERYTHING) -> tuple[str | None, tuple[str, ...]]:
    resource, captured = router.find(path)
    if resource is None:
        return None, captured
    return next(iter(resource.operations.values())).route.path, captured


@pytest.mark.parametrize(
    ("path", "expected", "captured"),
    [
        ("/predictions/predict", "/predictions/{model_name}", ("predict",)),
        ("/predictions/m/predict", "/predictions/{model_name}/{model_version}", ("m", "predict")),
        ("/m/predict", "/{model_name}/predict", ("m",)),
        ("/m/1.0/predict", "/{model_name}/{model_version}/predict", ("m", "1.0")),
        ("/ping/predict", "/ping/{rest*}", ("predict",)),
        ("/v1/predict", "/{model_name}/predict", ("v1",)),
        ("/v1/x/predict", "/{model_name}/{model_version}/predict", ("v1", "x")),
        ("/models/predict", "/models/{model_name}", ("predict",)),
        ("/models/m/invoke", "/models/{model_name}/invoke", ("m",)),
        ("/models/m/1.0", "/models/{model_name}/{model_version}", ("m", "1.0")),
        ("/models/invoke/set-default", "/models/{model_name}/{model_version}", ("invoke", "set-default")),
        ("/v1/models/m:predict", "/v1/models/{model_name}:predict", ("m",)),
        ("/v1/models/m:explain", "/v1/models/{model_name}:explain", ("m",)),
        ("/v1/models/m:other", "/v1/models/{model_name}", ("m:other",)),
        ("/v2/models/m/versions/1.0/infer", "/v2/models/{model_name}/versions/{model_version}/infer", ("m", "1.0")),
        ("/predictions/m/1/a\n/b", "/predictions/{model_name}/{model_version}/{url_path*}", ("m", "1", "a\n/b")),
    ],
)
def test_the_first_route_that_fits_is_the_one(path: str, expected: str, captured: tuple[str, ...]) -> None:
    assert template(path) == (expected, captured)


@pytest.mark.parametrize(
    "path", ["", "*", "/nope", "/m/predict/x", "//predict", "/m//predict", "/invocations/x", "/v1/models/m:predict/x"]
)
def test_other_paths_are_no_resource(path: str) -> None:
    assert template(path) == (None, ())


def test_a_router_knows_the_routes_it_was_given() -> None:
    router = Router((route for route in ROUTES if route.listener is Listener.INFERENCE), lambda route: route.function)
    assert template("/models/predict", router) == ("/{model_name}/predict", ("models",))
    assert template("/models/m/1.0", router) == (None, ())
