"""Which path leads to which model and version, and what the handler sees of it."""

from __future__ import annotations

from oracle.differences import Differs, fixed
from oracle.exchange import Exchange, Listener
from oracle.views import only_paths, openapi_outline

__all__ = ["ROUTING"]

_M = Listener.MANAGEMENT
_FIELD = b'--x\r\nContent-Disposition: form-data; name="model_name"\r\n\r\nlooks\r\n--x--\r\n'

ROUTING = (
    Exchange("the first version is the default", "GET", "/models/looks/all", on=_M),
    Exchange("a prediction by POST", "POST", "/predictions/looks", (23, 28), body=b"abc"),
    Exchange("a prediction by PUT", "PUT", "/predictions/looks", (24,), body=b"abc"),
    Exchange("a prediction by GET", "GET", "/predictions/looks", (25,)),
    Exchange("a prediction by DELETE", "DELETE", "/predictions/looks"),
    Exchange("a version", "POST", "/predictions/looks/2.0", (26,), body=b"abc"),
    Exchange("more path behind the version", "POST", "/predictions/looks/1.0/v1/chat/completion", (27,), body=b"abc"),
    Exchange("an explanation", "POST", "/explanations/looks", (28,), body=b"abc"),
    Exchange("an explanation of a version", "POST", "/explanations/looks/2.0/more", (28,), body=b"abc"),
    Exchange("no model", "GET", "/predictions", (29,)),
    Exchange("no model to explain", "GET", "/explanations/"),
    Exchange("invocations by query", "POST", "/invocations?model_name=looks&x=1", (30,), body=b"abc"),
    Exchange(
        "invocations by form field",
        "POST",
        "/invocations",
        (32,),
        body=_FIELD,
        content_type="multipart/form-data; boundary=x",
    ),
    Exchange("invocations of nothing", "POST", "/invocations", (33,), body=b"abc"),
    Exchange("more path behind invocations", "POST", "/invocations/looks"),
    Exchange("invoke", "POST", "/models/looks/invoke?x=1", (34, 53), body=b"abc"),
    Exchange("something else than invoke", "POST", "/models/looks/foo", (34,), body=b"abc"),
    Exchange("the old path", "GET", "/looks/predict?data=test", (35,)),
    Exchange("the old path with a version", "POST", "/looks/2.0/predict", (36,), body=b"abc"),
    Exchange(
        "the first KServe protocol",
        "POST",
        "/v1/models/looks:predict",
        (37, "K9", "K10"),
        body=b'{"instances": [1]}',
        content_type="application/json",
    ),
    Exchange(
        "the first KServe protocol, explained",
        "POST",
        "/v1/models/looks:explain",
        (37, "K10"),
        body=b'{"instances": [1]}',
        content_type="application/json",
    ),
    Exchange(
        "the first KServe protocol by PUT",
        "PUT",
        "/v1/models/looks:predict",
        ("K11",),
        body=b'{"instances": [1]}',
    ),
    Exchange("the first KServe protocol by GET", "GET", "/v1/models/looks:predict", ("K11",)),
    Exchange(
        "the first KServe protocol with an escaped colon",
        "POST",
        "/v1/models/looks%3Apredict",
        ("K12",),
        body=b"{}",
    ),
    Exchange(
        "the first KServe protocol for nobody",
        "POST",
        "/v1/models/absent:predict",
        ("K6",),
        body=b"{}",
    ),
    Exchange(
        "the second KServe protocol",
        "POST",
        "/v2/models/looks/infer",
        (38, "K31"),
        body=b'{"inputs": []}',
        content_type="application/json",
    ),
    Exchange(
        "the second KServe protocol, explained",
        "POST",
        "/v2/models/looks/explain",
        (38, "K25"),
        body=b'{"inputs": []}',
        content_type="application/json",
    ),
    Exchange(
        "the second KServe protocol for nobody",
        "POST",
        "/v2/models/absent/infer",
        ("K26", "K42"),
        body=b"{}",
    ),
    Exchange(
        "the description of a model",
        "OPTIONS",
        "/predictions/looks",
        (39,),
        view=openapi_outline,
        differs=Differs(
            fixed("The paths are those of the model, `/predictions` among them, and operation ids are unique."),
            body={
                "openapi": "3.0.1",
                "title": "RESTful API for: looks",
                "paths": {
                    "/predictions/looks": {"post": "looks"},
                    "/v1/models/looks:predict": {"post": "v1_predictions_looks"},
                    "/v2/models/looks/infer": {"post": "v2_predictions_looks"},
                },
            },
            extra=only_paths("/predictions/looks", "/v1/models/looks:predict", "/v2/models/looks/infer"),
        ),
    ),
    Exchange("the description of no model", "OPTIONS", "/predictions/unknown", (40,)),
    Exchange("an unknown model", "POST", "/predictions/unknown", (41,), body=b"abc"),
    Exchange("an unknown version", "POST", "/predictions/looks/9.9", (42,), body=b"abc"),
    Exchange("an explanation by an unknown model", "POST", "/explanations/unknown", (41,), body=b"abc"),
)
