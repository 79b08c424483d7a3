"""Envelopes, and the protocols of KServe that two of them stand for."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from oracle.differences import Differs, error, fixed
from oracle.exchange import Exchange, Listener, Scenario
from oracle.scenarios import missing
from oracle.views import members

__all__ = ["BODY", "JSON", "KSERVE_1", "KSERVE_2"]

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
    ),
    models=("instances",),
    config={"service_envelope": "json"},
)

_instances = partial(Exchange, method="POST", content_type=_JSON, body=b'{"instances": [1, {"b64": "YWJj"}]}')

KSERVE_1 = Scenario(
    "kserve",
    "The envelope of the first KServe protocol.",
    (
        _instances(
            "predict instances", path="/v1/models/instances:predict", items=("K1", "K5"), missing=missing.KSERVE_1
        ),
        _instances("explain instances", path="/v1/models/instances:explain", items=("K2",), missing=missing.KSERVE_1),
        _instances("instances on the path of TorchServe", path="/predictions/instances", items=("K3",)),
        _instances(
            "instances without a content type",
            path="/v1/models/instances:predict",
            content_type="",
            items=("K4",),
            missing=missing.KSERVE_1,
        ),
        _instances("no instances", path="/v1/models/instances:predict", body=b"{}", missing=missing.KSERVE_1),
        Exchange(
            "describe through the envelope",
            "GET",
            "/models/instances?customized=true",
            ("K33",),
            on=Listener.MANAGEMENT,
            view=members("modelName", "workers", "customizedMetadata"),
            differs=Differs(
                fixed("Descriptions do not pass through envelopes."),
                status="200 OK",
                body=[{"modelName": "instances", "workers": 1, "customizedMetadata": {"given": {}, "explain": None}}],
            ),
        ),
    ),
    models=("instances",),
    config={"service_envelope": "kserve"},
)


def _tensor(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def _tensors(*inputs: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({**members, "inputs": inputs}).encode()


_infer = partial(Exchange, method="POST", path="/v2/models/tensors/infer", content_type=_JSON)

KSERVE_2 = Scenario(
    "kserve-2",
    "The envelope of the second KServe protocol, with its health and metadata.",
    (
        _infer(
            "a flat tensor",
            items=("K15",),
            body=_tensors(_tensor("in", [1, 2], "FP32", [1, 2]), id="a1"),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "a nested tensor",
            items=("K16",),
            body=_tensors(_tensor("in", [1, 2], "FP32", [[1, 2]]), id="a1"),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "no id",
            items=("K17",),
            body=_tensors(_tensor("in", [1], "INT64", [1])),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "a blank id",
            items=("K18",),
            body=_tensors(_tensor("in", [1], "INT64", [1]), id="  "),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "a tensor of bytes",
            items=("K19",),
            body=_tensors(_tensor("in", [1], "BYTES", ["abc"]), id="a1"),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "two tensors",
            items=("K23",),
            body=_tensors(_tensor("b", [1], "INT64", [1]), _tensor("a", [1], "FP64", [0.5]), id="a1"),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "a wrong shape",
            items=("K21",),
            body=_tensors(_tensor("in", [3], "INT64", [1])),
            missing=missing.KSERVE_2,
        ),
        _infer(
            "results of several types",
            items=("K22",),
            body=_tensors(*(_tensor(name, [1], "INT64", [1]) for name in ("integers", "booleans", "singles")), id="a1"),
            missing=missing.KSERVE_2,
        ),
        _infer("malformed JSON", items=("K27",), body=b"{broken", missing=missing.KSERVE_2),
        _infer(
            "parameters",
            items=("K30",),
            body=_tensors(_tensor("in", [1], "INT64", [1]), id="a1", parameters={"a": 1}),
            missing=missing.KSERVE_2,
        ),
        Exchange("the process lives", "GET", "/v2/health/live", ("K34",), missing=missing.KSERVE_2),
        Exchange("the models are ready", "GET", "/v2/health/ready", ("K35",), missing=missing.KSERVE_2),
        Exchange("the metadata of the server", "GET", "/v2", ("K37",), missing=missing.KSERVE_2),
        Exchange("the metadata of a model", "GET", "/v2/models/tensors", ("K38",)),
        Exchange("the readiness of a model", "GET", "/v2/models/tensors/ready", ("K39",)),
        Exchange(
            "the readiness of a version",
            "GET",
            "/v2/models/tensors/versions/1.0/ready",
            ("K40",),
            missing=missing.KSERVE_2,
        ),
        Exchange(
            "the readiness of no version",
            "GET",
            "/v2/models/tensors/versions/9.9/ready",
            ("K41",),
            missing=missing.KSERVE_2,
        ),
        Exchange("the list of the first protocol", "GET", "/v1/models", ("K13",)),
    ),
    models=("tensors",),
    config={"service_envelope": "kservev2", "ts_open_inference_protocol": "true"},
)
