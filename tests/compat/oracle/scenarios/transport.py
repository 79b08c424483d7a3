"""Framing, conventions of all answers, health."""

from __future__ import annotations

from oracle.differences import CLOSES, USUAL_HEADERS, Differs, error, fixed, more
from oracle.exchange import Exchange, Framing, Listener
from oracle.views import only_paths, openapi_outline

__all__ = ["TRANSPORT"]

_M, _X = Listener.MANAGEMENT, Listener.METRICS
_LOOKS = "/predictions/looks"

_HOST = '"Host": "<inference address>"'
_REFUSES = more("The refusal has the form of all errors; the connection closes, because the body may come or not.")
_SENT = fixed("Handlers see the framing headers that were sent.")
_CLOSES = fixed("A client that asks for the end of the connection gets it.")

_DESCRIBED = more("What TorchServe serves and does not describe is described, too, and what it does not serve.")
_INFERENCE_API = Differs(
    fixed("Operation ids are unique; of `predictions`, which TorchServe has three times, KServe's got a prefix."),
    texts={
        f'"{path}": {{\n      "post": "predictions"': f'"{path}": {{\n      "post": "{id_}"'
        for path, id_ in (
            ("/v1/models/{model_name}:predict", "v1_predictions"),
            ("/v2/models/{model_name}/infer", "v2_predictions"),
        )
    },
    extra=only_paths(
        "/",
        "/api-description",
        "/metrics",
        "/ping",
        "/predictions/{model_name}",
        "/predictions/{model_name}/{model_version}",
        "/v1/models/{model_name}:predict",
        "/v2/models/{model_name}/infer",
    ),
)
_MANAGEMENT_API = Differs(
    _DESCRIBED,
    extra=only_paths(
        "/",
        "/api-description",
        "/metrics",
        "/models",
        "/models/{model_name}",
        "/models/{model_name}/{model_version}",
        "/models/{model_name}/{model_version}/set-default",
    ),
)

TRANSPORT = (
    Exchange("the root of the inference listener", "GET", "/", (1,)),
    Exchange("the root of the management listener", "GET", "/", (1,), on=_M),
    Exchange("the root of the metrics listener", "GET", "/", (1,), on=_X),
    Exchange(
        "the description of the inference API", "OPTIONS", "/", (2,), view=openapi_outline, differs=_INFERENCE_API
    ),
    Exchange(
        "the description of the management API",
        "OPTIONS",
        "/",
        (3,),
        on=_M,
        view=openapi_outline,
        differs=_MANAGEMENT_API,
    ),
    Exchange("the description of the metrics API", "OPTIONS", "/", (4,), on=_X, view=openapi_outline),
    Exchange(
        "the description under its old path",
        "GET",
        "/api-description",
        (5,),
        view=openapi_outline,
        differs=_INFERENCE_API,
    ),
    Exchange("an unknown path", "GET", "/nowhere", (6, 9, 10, 12, 13)),
    Exchange("an unknown path of the management listener", "GET", "/nowhere", (6,), on=_M),
    Exchange("an unknown path of the metrics listener", "GET", "/nowhere", (6,), on=_X),
    Exchange(
        "two requests on one connection", "GET", "/ping", (7, 8, 9, 11, 13), headers={"x-request-id": "mine"}, times=2
    ),
    Exchange(
        "an upload after 100 Continue",
        "PUT",
        _LOOKS,
        (15,),
        body=b"abc",
        framing=Framing.EXPECT,
        differs=Differs(_SENT, texts={_HOST: f'"Expect": "100-continue",\n    {_HOST}'}),
    ),
    Exchange(
        "another expectation",
        "PUT",
        _LOOKS,
        body=b"abc",
        headers={"Expect": "a miracle"},
        differs=error(
            _REFUSES,
            "417 Expectation Failed",
            "BadRequestException",
            "The only expectation understood is 100-continue.",
            headers=USUAL_HEADERS | {"connection": "close"},
            connection="closed",
        ),
    ),
    Exchange(
        "a body in chunks",
        "POST",
        _LOOKS,
        (16,),
        body=b"abcdef",
        framing=Framing.CHUNKED,
        differs=Differs(
            _SENT,
            texts={_HOST: f'{_HOST},\n    "Transfer-Encoding": "chunked"', '    "content-length": "6",\n': ""},
        ),
    ),
    Exchange("a slash at the end", "GET", "/ping/", (17,)),
    Exchange("a slash at the end of the list", "GET", "/models/", (17,), on=_M),
    Exchange("more path behind ping", "GET", "/ping/x", (22,)),
    Exchange("ping by POST", "POST", "/ping", (22,), body=b"{}"),
    Exchange("only the head of an answer", "HEAD", "/ping"),
    Exchange("HTTP 1.0", "GET", "/ping", version="HTTP/1.0", differs=Differs(_CLOSES, **CLOSES)),
    Exchange("a request to close", "GET", "/ping", headers={"Connection": "close"}, differs=Differs(_CLOSES, **CLOSES)),
    Exchange(
        "a header without a colon",
        "GET",
        "/ping HTTP/1.1\r\nbroken",
        differs=Differs(fixed("The connection closes where the next request would start is unknown."), **CLOSES),
    ),
    Exchange(
        "a broken escape in the path",
        "GET",
        "/predictions/%zz",
        differs=error(
            fixed("What a client sent wrongly is answered 400."),
            "400 Bad Request",
            "BadRequestException",
            "The path holds a % that is not followed by two hexadecimal digits.",
        ),
    ),
    Exchange("an escaped slash", "GET", "/predictions%2Flooks%2F1.0%2Fa+b"),
    Exchange("paths know upper case", "GET", "/PING"),
)
