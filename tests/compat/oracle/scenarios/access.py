"""Who may ask what, and where: keys, and one address for everything."""

from __future__ import annotations

from functools import partial

from oracle.differences import Differs, error, fixed
from oracle.exchange import Exchange, Listener, Scenario
from oracle.until import status
from oracle.views import members

__all__ = ["EXPIRY", "SHARED", "TOKENS"]

_m = partial(Exchange, on=Listener.MANAGEMENT)
_x = partial(Exchange, on=Listener.METRICS)

_KEY, _MANAGEMENT_KEY = {"Authorization": "Bearer {inference key}"}, {"Authorization": "Bearer {management key}"}
_API_KEY = {"Authorization": "Bearer {API key}"}

TOKENS = Scenario(
    "tokens",
    "Keys are required.",
    (
        Exchange("health without the required key", "GET", "/ping"),
        Exchange("health with the key", "GET", "/ping", headers=_KEY),
        Exchange("a prediction without the key", "POST", "/predictions/looks", body=b"abc"),
        Exchange("a prediction with the other key", "POST", "/predictions/looks", body=b"abc", headers=_MANAGEMENT_KEY),
        Exchange("a prediction with the key", "POST", "/predictions/looks", body=b"abc", headers=_KEY),
        Exchange("a scheme in lower case", "GET", "/ping", headers={"Authorization": "bearer {inference key}"}),
        Exchange("an unknown path without the key", "GET", "/nowhere"),
        Exchange("an unknown path with the key", "GET", "/nowhere", headers=_KEY),
        Exchange("KServe without the key", "POST", "/v1/models/looks:predict", ("K14",), body=b"{}"),
        _m("the list without the required key", "GET", "/models"),
        _m("the list with the required key", "GET", "/models", headers=_MANAGEMENT_KEY),
        _m("the list with the other key", "GET", "/models", headers=_KEY),
        _m("register without the key", "POST", "/models?url=answers.mar"),
        _x("metrics need no key", "GET", "/metrics"),
        _m("renew without the API key", "GET", "/token?type=inference"),
        _m("renew with the management key", "GET", "/token?type=inference", headers=_MANAGEMENT_KEY),
        _m("renew an unknown key", "GET", "/token?type=foo", headers=_API_KEY),
        _m("renew nothing", "GET", "/token", headers=_API_KEY),
        _m("renew", "GET", "/token?type=inference", headers=_API_KEY),
        Exchange("health with the new key", "GET", "/ping", headers=_KEY),
        Exchange("renew on the inference listener", "GET", "/token?type=inference", headers=_KEY),
        _m(
            "a model whose name begins with token",
            "GET",
            "/models/tokenizer",
            headers=_MANAGEMENT_KEY,
            differs=error(
                fixed("Only `/token` itself renews keys, not every path that contains it."),
                "404 Not Found",
                "ModelNotFoundException",
                "Model not found: tokenizer",
            ),
        ),
    ),
    models=("looks",),
    config={"metrics_mode": "log"},
    tokens=True,
)

EXPIRY = Scenario(
    "expiry",
    "Keys are required and live for three seconds.",
    (
        Exchange("a key that expired", "GET", "/ping", headers=_KEY, until=status(400)),
        _m("renew a key that expired", "GET", "/token?type=inference", headers=_API_KEY),
        Exchange("the new key", "GET", "/ping", headers=_KEY),
        Exchange("the new key, expired", "GET", "/ping", headers=_KEY, until=status(400)),
    ),
    config={"token_expiration_min": 0.05},
    tokens=True,
)

SHARED = Scenario(
    "shared",
    "One address for inference and management.",
    (
        Exchange("health on the shared listener", "GET", "/ping"),
        Exchange("a prediction on the shared listener", "POST", "/predictions/looks", ("K59",), body=b"abc"),
        _m("the list on the shared listener", "GET", "/models"),
        _m("describe on the shared listener", "GET", "/models/looks", ("K59",)),
        _m(
            "describe a version on the shared listener",
            "GET",
            "/models/looks/1.0",
            (132,),
            view=members("modelName", "modelVersion", "workers"),
            differs=Differs(
                fixed("Versions are described on a shared listener, too."),
                status="200 OK",
                headers={"content-type": "application/json", "content-length": "<length of the body>"},
                body=[{"modelName": "looks", "modelVersion": "1.0", "workers": 1}],
            ),
        ),
        _m("readiness on the shared listener", "GET", "/v1/models/looks", ("K59",)),
        _m("metrics on the shared listener", "GET", "/metrics"),
        _m("invoke on the shared listener", "POST", "/models/looks/invoke", body=b"abc"),
        _m("describe itself on the shared listener", "GET", "/models/describes?customized=true", ("K60",)),
    ),
    models=("looks", "describes"),
    config={"metrics_mode": "log"},
    shared=True,
)
