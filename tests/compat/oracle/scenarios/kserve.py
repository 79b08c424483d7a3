"""The protocols of KServe, with the envelopes that stand for them, and its image."""

from __future__ import annotations

import json
import struct
from functools import partial
from typing import Any

from mariner.settings import VERSION
from oracle.differences import Differs, Reason, decision, fixed
from oracle.exchange import Exchange, Listener, Scenario
from oracle.views import members

__all__ = ["KSERVE"]

_JSON = "application/json"


def _refused(torchserve: str, message: str) -> Differs:
    return Differs(
        fixed("A body that an envelope cannot read is answered 400."),
        status="400 Bad Request",
        texts={'"code": 503': '"code": 400', torchserve: json.dumps(message)[1:-1]},
    )


_instances = partial(Exchange, method="POST", content_type=_JSON, body=b'{"instances": [1, {"b64": "YWJj"}]}')

V1 = Scenario(
    "kserve",
    "The envelope of the first KServe protocol.",
    (
        _instances("predict instances", path="/v1/models/instances:predict", items=("K1", "K5")),
        _instances("explain instances", path="/v1/models/instances:explain", items=("K2",)),
        _instances("instances on the path of TorchServe", path="/predictions/instances", items=("K3",)),
        _instances(
            "instances without a content type",
            path="/v1/models/instances:predict",
            content_type="",
            items=("K4",),
        ),
        _instances(
            "no instances",
            path="/v1/models/instances:predict",
            body=b"{}",
            differs=_refused(
                "number of batch response mismatched",
                'The request body must be a JSON object with a list "instances" that is not empty.',
            ),
        ),
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
_ONE = _tensor("in", [1], "INT64", [1])


def _answer(*outputs: dict[str, Any]) -> dict[str, Any]:
    return {"id": "a1", "model_name": "tensors", "model_version": "1.0", "outputs": outputs}


def _output(name: str, datatype: str, *data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "data": data, "shape": [len(data)]}


def _answered(because: Reason, *outputs: dict[str, Any]) -> Differs:
    """The answer is 200 with these tensors."""
    body = json.dumps(_answer(*outputs), indent=2)
    return Differs(because, status="200 OK", headers={"content-type": _JSON}, body=body)


_NATIVE = decision(13)
_IS_READY = Differs(_NATIVE, status="200 OK", body={"name": "tensors", "ready": True, "state": "ready"})


def _unknown(type_: str, message: str) -> Differs:
    members = {"code": 404, "type": type_, "message": message, "request_id": "<uuid 1>", "error": message}
    return Differs(_NATIVE, status="404 Not Found", body=members)


_NO_MODEL = _unknown("ModelNotFoundException", "Model not found: absent")
_NO_VERSION = _unknown("ModelVersionNotFoundException", "Model version: 9.9 does not exist for model: tensors")

_TENSORS = (
    _infer("a flat tensor", items=("K15",), body=_tensors(_tensor("in", [1, 2], "FP32", [1, 2]), id="a1")),
    _infer("a nested tensor", items=("K16",), body=_tensors(_tensor("in", [1, 2], "FP32", [[1, 2]]), id="a1")),
    _infer("no id", items=("K17",), body=_tensors(_ONE)),
    _infer("a blank id", items=("K18",), body=_tensors(_ONE, id="  ")),
    _infer("a tensor of bytes", items=("K19",), body=_tensors(_tensor("in", [1], "BYTES", ["abc"]), id="a1")),
    _infer(
        "a tensor of two texts",
        items=("K20",),
        body=_tensors(_tensor("in", [2], "BYTES", ["abc", "def"]), id="a1"),
        differs=_answered(
            fixed("All texts of a tensor reach the handler, not the first alone."),
            _output("in", "BYTES", "abc", "def"),
        ),
    ),
    _infer(
        "a wrong shape",
        items=("K21",),
        body=_tensors(_tensor("in", [3], "INT64", [1])),
        differs=_refused("Prediction failed", """Input 'in': "data" has 1 elements, which is not the shape [3]."""),
    ),
    _infer(
        "results of several types",
        items=("K22",),
        body=_tensors(*(_tensor(name, [1], "INT64", [1]) for name in ("integers", "booleans", "singles")), id="a1"),
    ),
    _infer(
        "two tensors",
        items=("K23",),
        body=_tensors(_tensor("b", [1], "INT64", [1]), _tensor("a", [1], "FP64", [0.5]), id="a1"),
    ),
    _infer(
        "more results than tensors",
        items=("K24",),
        body=_tensors(_tensor("twice", [1], "INT64", [1]), id="a1"),
        differs=_answered(
            fixed("There may be more tensors in the answer than in the request."),
            _output("twice", "FP64", 1.0),
            _output("output-1", "FP64", 1.0),
        ),
    ),
    _infer(
        "malformed JSON",
        items=("K27",),
        body=b"{broken",
        differs=_refused(
            "Prediction failed",
            "The request body is not valid JSON: "
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
        ),
    ),
    _infer(
        "two at once",
        path="/v2/models/tensors-together/infer",
        items=("K28",),
        body=_tensors(_ONE, id="a1"),
        also=(_tensors(_ONE, id="a1"),),
        differs=Differs(
            decision(12),
            status="200 OK",
            body=json.dumps(_answer(_output("in", "FP64", 1.0)) | {"model_name": "tensors-together"}, indent=2),
        ),
    ),
    _infer(
        "the outputs that are wanted",
        items=("K29",),
        body=_tensors(
            _tensor("b", [1], "INT64", [1]), _tensor("a", [1], "INT64", [2]), id="a1", outputs=[{"name": "a"}]
        ),
        differs=_answered(_NATIVE, _output("a", "FP64", 2.0)),
    ),
    _infer("parameters", items=("K30",), body=_tensors(_ONE, id="a1", parameters={"a": 1})),
    Exchange(
        "register by another name",
        "POST",
        "/models?url=tensors.mar&model_name=alias&initial_workers=1&synchronous=true",
        ("K32",),
        on=Listener.MANAGEMENT,
    ),
    _infer(
        "the name that was registered",
        path="/v2/models/alias/infer",
        items=("K32",),
        body=_tensors(_ONE, id="a1"),
        differs=Differs(
            fixed("The answer names the model as it was registered."),
            texts={'"model_name": "tensors"': '"model_name": "alias"'},
        ),
    ),
)


def _behind(name: str, shape: list[int], datatype: str, size: int) -> dict[str, Any]:
    """A tensor whose values follow the JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def _binary(name: str, item: str, inputs: list[dict[str, Any]], raw: bytes, differs: Differs, **more: Any) -> Exchange:
    """A request with values behind its JSON."""
    head = _tensors(*inputs, id="a1", **more)
    return _infer(
        name,
        items=(item,),
        body=head + raw,
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
        differs=differs,
    )


def _answered_behind(*outputs: dict[str, Any], raw: bytes) -> Differs:
    """The answer is 200 with values behind its JSON."""
    head = json.dumps(_answer(*outputs)).encode()
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    try:
        body: str | bytes = (head + raw).decode()
    except UnicodeDecodeError:
        body = head + raw
    return Differs(_NATIVE, status="200 OK", headers=headers, body=body)


_PAIR = _behind("in", [2], "FP32", 8)
_TEXTS = _behind("in", [2], "BYTES", 9)
_SINGLES = _tensor("singles", [1], "INT64", [1])
_RAW_SINGLE = struct.pack("<f", 0.5)

_BINARY = (
    _binary(
        "a tensor behind the JSON",
        "K52",
        [_PAIR],
        struct.pack("<2f", 1, 2),
        _answered(_NATIVE, _output("in", "FP64", 3.0)),
    ),
    _binary(
        "tensors in the JSON and behind it",
        "K53",
        [_PAIR, _tensor("other", [1], "INT64", [1])],
        struct.pack("<2f", 1, 2),
        _answered(_NATIVE, _output("in", "FP64", 3.0), _output("other", "FP64", 1.0)),
    ),
    _infer(
        "a result behind the JSON",
        items=("K54",),
        body=_tensors(_SINGLES, id="a1", outputs=[{"name": "singles", "parameters": {"binary_data": True}}]),
        differs=_answered_behind(_behind("singles", [1], "FP32", 4), raw=_RAW_SINGLE),
    ),
    _infer(
        "all results but one behind the JSON",
        items=("K55",),
        body=_tensors(
            _SINGLES,
            _tensor("integers", [1], "INT64", [1]),
            id="a1",
            parameters={"binary_data_output": True},
            outputs=[{"name": "singles"}, {"name": "integers", "parameters": {"binary_data": False}}],
        ),
        differs=_answered_behind(
            _behind("singles", [1], "FP32", 4), _output("integers", "INT64", 1, 2), raw=_RAW_SINGLE
        ),
    ),
    _binary(
        "bytes behind the JSON, there and back",
        "K56",
        [_TEXTS],
        b"\1\0\0\0\xff\0\0\0\0",
        _answered_behind(_TEXTS, raw=b"\1\0\0\0\xff\0\0\0\0"),
        parameters={"binary_data_output": True},
    ),
    _binary(
        "half precision behind the JSON",
        "K57",
        [_behind("in", [2], "FP16", 4)],
        struct.pack("<2e", 1, 2),
        _answered(_NATIVE, _output("in", "FP64", 3.0)),
    ),
    _binary(
        "fewer bytes than there should be",
        "K58",
        [_PAIR],
        struct.pack("<f", 1),
        _refused("Prediction failed", "Input 'in': the body ends before its 8 bytes."),
    ),
    _binary(
        "more bytes than there should be",
        "K58",
        [_PAIR],
        struct.pack("<3f", 1, 2, 3),
        _refused("Prediction failed", "4 bytes of the body belong to no input."),
    ),
)

_METADATA = (
    Exchange("the process lives", "GET", "/v2/health/live", ("K34",)),
    Exchange("the models are ready", "GET", "/v2/health/ready", ("K35",)),
    Exchange(
        "the metadata of the server",
        "GET",
        "/v2",
        ("K37",),
        differs=Differs(
            fixed("`extensions` is there in its right spelling, too, and the version is the one of the server."),
            body={
                "name": "Torchserve",
                "version": VERSION,
                "extensions": ["kserve", "kubeflow", "binary_tensor_data"],
                "extenstion": ["kserve", "kubeflow"],
            },
        ),
    ),
    Exchange(
        "the metadata of a model",
        "GET",
        "/v2/models/tensors",
        ("K38",),
        differs=Differs(
            _NATIVE,
            status="200 OK",
            body={"name": "tensors", "versions": ["1.0"], "platform": "python", "inputs": [], "outputs": []},
        ),
    ),
    Exchange("the readiness of a model", "GET", "/v2/models/tensors/ready", ("K39",), differs=_IS_READY),
    Exchange("the readiness of nobody", "GET", "/v2/models/absent/ready", ("K39",), differs=_NO_MODEL),
    Exchange("the readiness of a version", "GET", "/v2/models/tensors/versions/1.0/ready", ("K40",), differs=_IS_READY),
    _infer(
        "a version",
        path="/v2/models/tensors/versions/1.0/infer",
        items=("K40",),
        body=_tensors(_ONE, id="a1"),
        differs=_answered(_NATIVE, _output("in", "FP64", 1.0)),
    ),
    Exchange(
        "the readiness of no version",
        "GET",
        "/v2/models/tensors/versions/9.9/ready",
        ("K41",),
        differs=_NO_VERSION,
    ),
    _infer(
        "no version",
        path="/v2/models/tensors/versions/9.9/infer",
        items=("K41",),
        body=_tensors(_ONE, id="a1"),
        differs=_NO_VERSION,
    ),
    Exchange(
        "the list of the first protocol",
        "GET",
        "/v1/models",
        ("K13",),
        differs=Differs(_NATIVE, status="200 OK", body={"models": ["alias", "tensors", "tensors-together"]}),
    ),
)

V2 = Scenario(
    "kserve-2",
    "The envelope of the second KServe protocol, with its health and metadata.",
    (*_TENSORS, *_BINARY, *_METADATA),
    models=("tensors", "tensors-together"),
    config={"service_envelope": "kservev2", "ts_open_inference_protocol": "true"},
)

_SNAPSHOT = {
    "name": "startup.cfg",
    "modelCount": 1,
    "models": {
        "instances": {
            "1.0": {
                "defaultVersion": True,
                "marName": "instances.mar",
                "minWorkers": 1,
                "maxWorkers": 5,
                "batchSize": 5,
                "maxBatchDelay": 200,
                "responseTimeout": 60,
            }
        }
    },
}

IMAGE = Scenario(
    "kserve-image",
    "The settings of KServe's image: one address, and a snapshot that names the models.",
    (
        Exchange(
            "the model of the snapshot",
            "GET",
            "/models/instances?customized=false",
            ("K59", "K61"),
            on=Listener.MANAGEMENT,
            view=members("modelName", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout"),
        ),
        _instances("a prediction by the model of the snapshot", path="/predictions/instances", items=("K59", "K61")),
        Exchange("readiness of the model of the snapshot", "GET", "/v1/models/instances", ("K59", "K61")),
        Exchange(
            "metrics of the image",
            "GET",
            "/metrics?name[]=ts_inference_requests_total",
            ("K63",),
            on=Listener.METRICS,
        ),
    ),
    models=("instances",),
    config={
        "install_py_dep_per_model": "true",
        "enable_metrics_api": "true",
        "metrics_mode": "prometheus",
        "number_of_netty_threads": 4,
        "job_queue_size": 10,
        "load_models": "all",
        "model_snapshot": json.dumps(_SNAPSHOT),
        "enable_envvars_config": "true",
    },
    environment={"TS_SERVICE_ENVELOPE": "kserve"},
    shared=True,
)

KSERVE = (V1, V2, IMAGE)
