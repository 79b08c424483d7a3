"""What settings change: limits, CORS, metrics, remote archives; and what holds where nothing is set."""

from __future__ import annotations

from functools import partial

from oracle.differences import USUAL_HEADERS, Differs, Reason, decision, error, fixed, more
from oracle.exchange import Exchange, Framing, Listener, Scenario
from oracle.until import shows, status
from oracle.views import families, openapi_outline, tensor_values

__all__ = ["SETTINGS"]

_m = partial(Exchange, on=Listener.MANAGEMENT)
_x = partial(Exchange, on=Listener.METRICS)
_JSON = "application/json"


def _too_large(because: Reason, headers: dict[str, str], connection: str) -> Differs:
    return error(
        because,
        "413 Request Entity Too Large",
        "RequestEntityTooLargeException",
        "The request body is over the limit of 1000 bytes.",
        headers=USUAL_HEADERS | headers,
        connection=connection,
    )


_OVER_THE_LIMIT = (
    "The answer has 2000 bytes, more than max_response_size allows (1000). Return less or raise max_response_size."
)
_without_our_families = families(but="mariner_")
_CONFLICT = Differs(
    fixed("An archive that is there already is a conflict."),
    status="409 Conflict",
    texts={'"code": 500': '"code": 409', "InternalServerException": "ConflictStatusException"},
)

LIMITS = Scenario(
    "limits",
    "Small limits, bodies that are not decoded, no metrics listener.",
    (
        Exchange("a body at the limit", "POST", "/predictions/answers", (14,), body=b"text".ljust(1000)),
        Exchange(
            "a body over the limit",
            "POST",
            "/predictions/looks",
            (14,),
            body=b"x" * 1001,
            differs=_too_large(
                more("Answers of the transport have the same form as all others."), {"connection": "keep-alive"}, "open"
            ),
        ),
        Exchange(
            "a body in chunks over the limit",
            "POST",
            "/predictions/looks",
            body=b"x" * 1001,
            framing=Framing.CHUNKED,
            differs=_too_large(
                more("Of a body of unknown length nothing is read beyond the limit: the connection closes."),
                {"connection": "close"},
                "closed",
            ),
        ),
        Exchange("JSON that is not decoded", "POST", "/predictions/looks", (44,), body=b'{"a": 1}', content_type=_JSON),
        Exchange(
            "text that is not decoded", "POST", "/predictions/looks", (44,), body=b"abc", content_type="text/plain"
        ),
        Exchange(
            "an answer over the limit",
            "POST",
            "/predictions/answers",
            (70,),
            body=b"long",
            differs=Differs(
                more("An answer over the limit costs no worker, and the message tells the limit."),
                texts={"Worker died.": _OVER_THE_LIMIT},
            ),
        ),
        Exchange("after an answer over the limit", "POST", "/predictions/answers", (70,), body=b"short"),
        Exchange(
            "more requests than may wait",
            "POST",
            "/predictions/takes-time",
            (72,),
            body=b"x",
            also=(b"x",) * 9,
            distinct=True,
            differs=error(
                decision(7),
                "503 Service Unavailable",
                "ServiceUnavailableException",
                'Model "takes-time" has its queue full: 3 requests wait, job_queue_size is 3.',
                headers={"Retry-After": "1"},
                only=(1,),
            ),
        ),
        _x("metrics where there are none", "GET", "/metrics", (131,)),
    ),
    models=("looks", "answers", "takes-time"),
    config={
        "max_request_size": 1000,
        "max_response_size": 1000,
        "job_queue_size": 3,
        "decode_input_request": "false",
        "enable_metrics_api": "false",
    },
)

CORS = Scenario(
    "cors",
    "Headers for browsers, and the metrics of old.",
    (
        Exchange("CORS of an answer", "GET", "/ping", (18,)),
        Exchange("CORS of an error", "GET", "/nowhere", (18,)),
        _m("CORS of the management listener", "GET", "/models", (18,)),
        _m(
            "CORS of a method that is not allowed",
            "PUT",
            "/models",
            (18,),
        ),
        _x("CORS of the metrics listener", "GET", "/metrics", (18,), view=families("none")),
        Exchange(
            "CORS of a handler", "POST", "/predictions/answers", (18,), body=b"dictionary", content_type="text/plain"
        ),
        Exchange(
            "an origin of the handler", "POST", "/predictions/answers", (18,), body=b"origin", content_type="text/plain"
        ),
        Exchange(
            "what a browser asks first",
            "OPTIONS",
            "/predictions/answers",
            headers={"Origin": "https://page.example", "Access-Control-Request-Method": "POST"},
            view=openapi_outline,
            differs=Differs(
                more(
                    "What a browser asks before a request is answered by the CORS headers alone, with and without keys."
                ),
                headers={"content-type": None, "content-length": "<length of the body>"},
                body="",
            ),
        ),
        _x("the legacy mode of metrics", "GET", "/metrics", (127,)),
    ),
    models=("answers",),
    config={
        "cors_allowed_origin": "https://page.example",
        "cors_allowed_methods": "GET, POST, PUT, OPTIONS",
        "cors_allowed_headers": "X-Custom-Header",
        "metrics_mode": "legacy",
    },
)

SINGLE = Scenario(
    "single",
    "One model at start, metrics for Prometheus, no model control.",
    (
        Exchange("a prediction to be counted", "POST", "/predictions/looks", (130,), body=b"abc"),
        Exchange("a prediction of a version to be counted", "POST", "/predictions/looks/1.0", (130,), body=b"abc"),
        Exchange("an error to be counted", "GET", "/nowhere", (129,)),
        _m("register without model control", "POST", "/models?url=answers.mar", (110,)),
        _m("unregister without model control", "DELETE", "/models/looks", (110,)),
        _m("scale without model control", "PUT", "/models/looks?min_worker=1&synchronous=true", (110,)),
        _x("some metrics", "GET", "/metrics?name[]=ts_inference_requests_total&name[]=Requests2XX", (128, 129, 130)),
        _x("metrics that nobody knows", "GET", "/metrics?name[]=unknown", (128,)),
        _x(
            "all metrics",
            "GET",
            "/metrics",
            (127, 129, "K63"),
            until=shows(b"MemoryUsed{"),  # the first system metrics may come later than the first request
            differs=Differs(decision(16), extra=_without_our_families),
        ),
        _x("metrics by POST and more path", "POST", "/metrics/more?name[]=unknown"),
        Exchange("invocations of the only model", "POST", "/invocations", (31,), body=b"abc"),
    ),
    models=("looks",),
    config={"metrics_mode": "prometheus"},
    model_api=False,
)

REMOTE = Scenario(
    "remote",
    "Archives from urls that the configuration allows.",
    (
        _m("a url that is not allowed", "POST", "/models?url=https://example.org/x.mar", (97,)),
        _m("an allowed url without a server", "POST", "/models?url=http://127.0.0.1:1/x.mar", (95,)),
        _m("an allowed file that is not there", "POST", "/models?url=file:///absent.mar", (96,)),
        _m(
            "a file whose name is in the store",
            "POST",
            "/models?url=file://{archives}/looks.mar",
            (99,),
            differs=_CONFLICT,
        ),
        _m("a file", "POST", "/models?url=file://{archives}/remote/distant.mar", (99, 123)),
        _m("the same file again", "POST", "/models?url=file://{archives}/remote/distant.mar", (99,), differs=_CONFLICT),
        _m("unregister what came from a url", "DELETE", "/models/distant", (123,)),
        _m("its archive is gone", "POST", "/models?url=distant.mar", (123,)),
    ),
    config={"allowed_urls": "file://.*,http://127[.]0[.]0[.]1:.*"},
)

_READY = decision(27)

UNHEALTHY = Scenario(
    "unhealthy",
    "A model that does not load.",
    (
        Exchange("the health of a model that gave up", "GET", "/ping", (21,), until=status(500)),
        _m(
            "readiness of a model that gave up",
            "GET",
            "/v1/models/gives-up",
            differs=Differs(_READY, texts={"true": "false"}),
        ),
        Exchange(
            "readiness of the server with a model that gave up",
            "GET",
            "/v2/health/ready",
            ("K36",),
            differs=Differs(_READY, status="503 Service Unavailable", body={"ready": False, "state": "broken"}),
        ),
        Exchange(
            "the server with a model that gave up lives",
            "GET",
            "/v2/health/live",
            ("K36",),
        ),
    ),
    config={"load_models": "gives-up.mar", "ts_open_inference_protocol": "true"},  # the model is not waited for
)

UNTOUCHED = Scenario(
    "untouched",
    "No setting but the addresses.",
    (
        Exchange(
            "health without a key",
            "GET",
            "/ping",
            differs=Differs(decision(1), status="200 OK", body={"status": "Healthy"}),
        ),
        _m(
            "the list without a key",
            "GET",
            "/models",
            differs=Differs(decision(1), status="200 OK", body={"models": []}),
        ),
        _m("the list with a key", "GET", "/models", headers={"Authorization": "Bearer {management key}"}),
        _m(
            "register with a key",
            "POST",
            "/models",
            headers={"Authorization": "Bearer {management key}"},
            differs=error(decision(2), "400 Bad Request", "BadRequestException", "Parameter url is required."),
        ),
        _x("metrics by default", "GET", "/metrics", (127,), differs=Differs(decision(16), extra=families("none"))),
    ),
    tokens=None,
    model_api=None,
)

TENSORS = Scenario(
    "tensors",
    "A handler that returns a tensor.",
    (Exchange("a tensor", "POST", "/predictions/tensor", (57,), body=b"x", view=tensor_values),),
    models=("tensor",),
    torch=True,
)

SETTINGS = (LIMITS, CORS, SINGLE, REMOTE, UNHEALTHY, UNTOUCHED, TENSORS)
