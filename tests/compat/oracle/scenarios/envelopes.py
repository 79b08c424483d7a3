"""Envelopes, and the variables that choose one."""

from __future__ import annotations

from functools import partial

from oracle.differences import Differs, decision, error, fixed
from oracle.exchange import Exchange, Listener, Scenario

__all__ = ["ENVELOPES"]

_JSON = "application/json"
_looks = partial(Exchange, method="POST", path="/predictions/instances", content_type=_JSON)

BODY = Scenario(
    "envelope-body",
    "The envelope that takes bodies out of their fields.",
    (
        _looks("a body", items=("K44",), body=b'{"a": 1}'),
        _looks(
            "a field called data", items=("K44",), body=b"data=abc", content_type="application/x-www-form-urlencoded"
        ),
    ),
    models=("instances",),
    config={"service_envelope": "body"},
)

JSON = Scenario(
    "envelope-json",
    "The envelope for lists of instances.",
    (
        _looks("two instances", items=("K45",), body=b'{"instances": [1, 2]}'),
        _looks(
            "encoded instances",
            items=("K47",),
            body=b'{"instances": [{"b64": "YWJj"}, {"img": {"b64": "YWJj"}, "n": 1}]}',
        ),
        _looks(
            "text in place of instances",
            items=("K48",),
            body=b"abc",
            content_type="text/plain",
            differs=error(
                fixed("A body that an envelope cannot read is answered 400."),
                "400 Bad Request",
                "InternalServerException",
                "The request body is not valid JSON: Expecting value: line 1 column 1 (char 0).",
            ),
        ),
        _looks("after text in place of instances", items=("K48",), body=b'{"instances": ["fine"]}'),
        _looks(
            "requests of one batch",
            path="/predictions/instances-together",
            items=("K46",),
            body=b'{"instances": [1]}',
            also=(b'{"instances": [2, 3, 4]}',),
        ),
    ),
    models=("instances", "instances-together"),
    config={"service_envelope": "json"},
)

UNKNOWN = Scenario(
    "envelope-unknown",
    "An envelope that there is not.",
    (
        Exchange(
            "register under an unknown envelope",
            "POST",
            "/models?url=instances.mar&initial_workers=1&synchronous=true",
            ("K49",),
            on=Listener.MANAGEMENT,
        ),
        Exchange("what was not registered", "GET", "/models/instances", ("K49",), on=Listener.MANAGEMENT),
    ),
    config={"service_envelope": "unknown"},
)

# Of the variables the first counts only with a setting, the second always, against the setting of its name.
_VARIABLES = {"TS_SERVICE_ENVELOPE": "json", "TS_OPEN_INFERENCE_PROTOCOL": "oip"}

IGNORED = Scenario(
    "environment-ignored",
    "Variables, and no leave to read them.",
    (
        _looks("the envelope of an ignored variable", items=("K50",), body=b'{"instances": [1]}'),
        Exchange("the flag of the protocol in a variable", "GET", "/v2/health/live", ("K43",)),
    ),
    models=("instances",),
    environment=_VARIABLES,
)

READ = Scenario(
    "environment-read",
    "Variables that are read.",
    (
        _looks("the envelope of a variable", items=("K50",), body=b'{"instances": [1]}'),
        Exchange(
            "another protocol in a variable",
            "GET",
            "/v2/health/live",
            ("K43",),
            differs=Differs(decision(13), status="200 OK", body={"live": True}),
        ),
    ),
    models=("instances",),
    config={"enable_envvars_config": "true", "ts_open_inference_protocol": "true"},
    environment=_VARIABLES | {"TS_OPEN_INFERENCE_PROTOCOL": "none"},
)

ENVELOPES = (BODY, JSON, UNKNOWN, IGNORED, READ)
