"""KServe v1 and v2 over REST, asked over real sockets of real models: one test per line of the contract.

The numbers are those of the checklist that the contract was written down with; they are stable.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from mariner.auth import Listener
from mariner.config import Address, Config, TokenMode
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

JSON = "application/json"
LENGTH = "Inference-Header-Content-Length"

INSTANCES = """
def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"about": "instances"}]
    return [{"count": len(data), "value": item} for item in data]
"""
RAW = """
def handle(data, context):
    if data is None:
        return None
    names = ("explain", "url_path")
    return [
        {
            "row": {name: value if isinstance(value, (dict, str)) else value.hex() for name, value in row.items()},
            **{name: context.get_request_header(index, name) for name in names},
        }
        for index, row in enumerate(data)
    ]
"""
TENSORS = """
import numpy as np

ANSWERS = {
    "float": 1.5, "int": 3, "bool": True, "str": "text", "array": np.array([1, 2], np.float32),
    "half": np.array([0.5], np.float16), "bytes": [b"\\xff", b"", "text"],
}

def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"about": "tensors"}]
    if context.get_request_header(0, "explain") == "True":
        return ["explained" for _ in data]
    if data[0]["name"] == "two":
        return [1, 2]
    return [ANSWERS.get(tensor["name"], repr(tensor["data"])) for tensor in data]
"""
# A batch leaves when all its requests are there, not before.
BATCH_OF_FOUR = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nbatchingPolicy: fill\nmaxBatchDelay: 20000\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(address: Address, method: str, path: str, body: Any = b"", kind: str = "", **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(raw)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Type: {kind}"] if kind else []
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write("\r\n".join([*lines, "", ""]).encode() + raw)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *rest = head.decode().split("\r\n")
    pairs = (line.partition(": ") for line in rest)
    return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, content)


class Asked:
    """A running server, and how it is asked."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def infer(self, path: str, body: Any = b"", kind: str = JSON, method: str = "POST", **headers: str) -> Answer:
        return await ask(self.server.address(Listener.INFERENCE), method, path, body, kind, **headers)

    async def manage(self, method: str, path: str, **headers: str) -> Answer:
        return await ask(self.server.address(Listener.MANAGEMENT), method, path, **headers)

    async def binary(self, request: dict[str, Any], *raw: bytes, length: str | None = None) -> Answer:
        head = json.dumps(request).encode()
        headers = {LENGTH: str(len(head)) if length is None else length}
        return await self.infer("/v2/models/m/infer", head + b"".join(raw), "application/octet-stream", **headers)

    def pids(self, model: str) -> list[int]:
        return [worker.pid for worker in self.server.models.registry.get(model).pool.workers]


def put_model(store: Path, name: str, source: str, config: str = "", *, model: str = "", version: str = "1.0") -> None:
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    (place / "handler.py").write_text(source)
    entry = {"modelName": model or name, "modelVersion": version, "handler": "handler.py"}
    if config:
        (place / "config.yaml").write_text(config)
        entry["configFile"] = "config.yaml"
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": entry}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def v1(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asked]:
    """Models behind the envelope ``kserve``."""
    place = tmp_path_factory.mktemp("v1")
    put_model(place / "store", "m", INSTANCES)
    async with running_server(
        model_store=place / "store", load_models=("m",), temp_dir=place, service_envelope="kserve"
    ) as server:
        await server.models.wait_until_ready()
        yield Asked(server)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def v2(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asked]:
    """Models behind the envelope ``kservev2``: m in two versions, alias, and batched."""
    place = tmp_path_factory.mktemp("v2")
    put_model(place / "store", "m", TENSORS)
    put_model(place / "store", "newer", TENSORS, model="m", version="2.0")
    put_model(place / "store", "batched", TENSORS, BATCH_OF_FOUR)
    async with running_server(
        model_store=place / "store",
        load_models=("m", "newer", "batched", "alias=m"),
        temp_dir=place,
        service_envelope="kservev2",
    ) as server:
        await server.models.wait_until_ready()
        yield Asked(server)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asked]:
    """A model without an envelope, and one without workers."""
    place = tmp_path_factory.mktemp("plain")
    put_model(place / "store", "m", RAW)
    put_model(place / "store", "idle", RAW)
    async with running_server(model_store=place / "store", load_models=("m",), temp_dir=place) as server:
        await server.models.wait_until_ready()
        asked = Asked(server)
        assert (await asked.manage("POST", "/models?url=idle")).status == 200
        yield asked


def tensor(name: str = "x", data: Any = (1,), shape: Any = (1,), datatype: str = "INT64") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


# -- v1 --------------------------------------------------------------------------------------------------------------


async def test_01_a_prediction_is_in_predictions(v1: Asked) -> None:
    answer = await v1.infer("/v1/models/m:predict", {"instances": [{"data": 7}]})
    assert (answer.status, answer.json) == (200, {"predictions": [{"count": 1, "value": {"data": 7}}]})
    assert answer.headers["content-type"] == JSON


async def test_02_an_explanation_is_in_explanations(v1: Asked) -> None:
    answer = await v1.infer("/v1/models/m:explain", {"instances": [7]})
    assert (answer.status, answer.json) == (200, {"explanations": [{"count": 1, "value": 7}]})


async def test_03_the_old_route_gives_the_same_body(v1: Asked) -> None:
    body = {"instances": [1, 2]}
    assert (await v1.infer("/predictions/m", body)).body == (await v1.infer("/v1/models/m:predict", body)).body


@pytest.mark.parametrize("kind", [JSON, "", "application/octet-stream"])
async def test_04_json_needs_no_content_type(v1: Asked, kind: str) -> None:
    answer = await v1.infer("/v1/models/m:predict", {"instances": [7]}, kind)
    assert (answer.status, answer.json["predictions"][0]["value"]) == (200, 7)


async def test_05_all_instances_of_a_request_reach_the_handler_in_one_call(v1: Asked) -> None:
    answer = await v1.infer("/v1/models/m:predict", {"instances": [1, 2, 3]})
    assert answer.json == {"predictions": [{"count": 3, "value": value} for value in (1, 2, 3)]}


async def test_06_an_unknown_model_is_404(v1: Asked) -> None:
    error = (await v1.infer("/v1/models/unknown:predict", {"instances": [1]})).json
    assert (error["code"], error["type"]) == (404, "ModelNotFoundException")
    assert error["message"] == error["error"] == "Model not found: unknown"


async def test_07_readiness_follows_the_workers(plain: Asked) -> None:
    for ask_for in (plain.manage, lambda method, path: plain.infer(path, method=method)):
        assert (await ask_for("GET", "/v1/models/m")).json == {"name": "m", "ready": True}
        assert (await ask_for("GET", "/v1/models/idle")).json == {"name": "idle", "ready": False}


async def test_08_readiness_of_an_unknown_model_is_404_and_cannot_be_posted(plain: Asked) -> None:
    answer = await plain.manage("GET", "/v1/models/unknown")
    assert (answer.status, answer.json["type"]) == (404, "ModelNotFoundException")
    answer = await plain.manage("POST", "/v1/models/unknown")
    assert (answer.status, answer.json["type"]) == (405, "MethodNotAllowedException")


@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/v2/models/m/infer", "/v2/models/m/versions/1.0/infer"])
async def test_09_without_an_envelope_the_handler_gets_the_parsed_body(plain: Asked, path: str) -> None:
    answer = await plain.infer(path, {"anything": [1]})
    assert (answer.status, answer.json["row"]) == (200, {"body": {"anything": [1]}})


@pytest.mark.parametrize(
    ("path", "explain"),
    [
        ("/v1/models/m:predict?x=1", "False"),
        ("/v1/models/m:explain", "True"),
        ("/v2/models/m/infer", "False"),
        ("/v2/models/m/explain", "True"),
    ],
)
async def test_10_the_handler_is_told_what_is_wanted_and_nothing_else(plain: Asked, path: str, explain: str) -> None:
    answer = await plain.infer(path, {}, explain="sent")
    assert answer.json == {"row": {"body": {}}, "explain": explain, "url_path": None}


@pytest.mark.parametrize("method", ["PUT", "GET", "PATCH", "DELETE"])
async def test_11_other_methods_predict_too(v1: Asked, method: str) -> None:
    answer = await v1.infer("/v1/models/m:predict", {"instances": [7]}, method=method)
    assert answer.json["predictions"][0]["value"] == 7


async def test_12_the_colon_may_be_escaped(v1: Asked) -> None:
    assert (await v1.infer("/v1/models/m%3Apredict", {"instances": [7]})).status == 200


async def test_13_models_are_listed(plain: Asked) -> None:
    assert (await plain.infer("/v1/models", method="GET")).json == {"models": ["idle", "m"]}
    assert (await plain.infer("/v2/models", method="GET")).json == {"models": ["idle", "m"]}


async def test_14_where_every_call_needs_a_key_so_do_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the keys are written
    put_model(tmp_path / "store", "m", RAW)
    async with running_server(
        model_store=tmp_path / "store",
        load_models=("m",),
        temp_dir=tmp_path,
        token_authorization=TokenMode.ON,
    ) as server:
        await server.models.wait_until_ready()
        asked = Asked(server)
        keys = json.loads((tmp_path / "key_file.json").read_text())
        inference = {"Authorization": f"Bearer {keys['inference']['key']}"}
        management = {"Authorization": f"Bearer {keys['management']['key']}"}
        for path in ("/v1/models/m:predict", "/v2/models/m/infer", "/v2/health/live"):
            assert (await asked.infer(path, {}, **inference)).status == 200
            for wrong in ({}, management):
                answer = await asked.infer(path, {}, **wrong)
                assert (answer.status, answer.json["type"]) == (400, "InvalidKeyException")
        assert (await asked.manage("GET", "/v1/models/m", **management)).status == 200
        assert (await asked.manage("GET", "/v1/models/m", **inference)).status == 400


# -- v2 inference ----------------------------------------------------------------------------------------------------

IMAGE = [[[index * 28 + column for column in range(28)] for index in range(28)]]
FLAT = [value for row in IMAGE[0] for value in row]


async def test_15_a_tensor_comes_back_under_its_name(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m/infer", {"id": "mine", "inputs": [tensor("int", FLAT, [1, 28, 28], "FP32")]})
    assert (answer.status, answer.json) == (
        200,
        {
            "id": "mine",
            "model_name": "m",
            "model_version": "1.0",
            "outputs": [{"name": "int", "datatype": "INT64", "data": [3], "shape": [1]}],
        },
    )
    assert answer.headers["content-type"] == JSON


async def test_16_nested_and_flat_data_are_the_same(v2: Asked) -> None:
    answers = [
        await v2.infer("/v2/models/m/infer", {"id": "x", "inputs": [tensor("x", data, [1, 28, 28], "FP32")]})
        for data in (FLAT, IMAGE)
    ]
    assert answers[0].body == answers[1].body
    assert answers[0].json["outputs"][0]["data"] == [repr(IMAGE)]


@pytest.mark.parametrize("id_", [{}, {"id": "  "}, {"id": None}])
async def test_17_and_18_without_an_id_the_answer_has_the_server_s(v2: Asked, id_: dict[str, Any]) -> None:
    answer = await v2.infer("/v2/models/m/infer", {**id_, "inputs": [tensor()]})
    assert answer.json["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(("data", "seen"), [(["one"], "'one'"), (["one", "two"], "['one', 'two']")])
async def test_19_and_20_elements_of_bytes(v2: Asked, data: list[str], seen: str) -> None:
    answer = await v2.infer("/v2/models/m/infer", {"inputs": [tensor("x", data, [len(data)], "BYTES")]})
    assert answer.json["outputs"][0]["data"] == [seen]


async def test_21_data_that_do_not_fit_the_shape_are_the_client_s_fault(v2: Asked) -> None:
    before = v2.pids("m")
    answer = await v2.infer("/v2/models/m/infer", {"inputs": [tensor("x", [1, 2, 3], [2, 2])]})
    assert (answer.status, answer.json["code"]) == (400, 400)
    assert "shape" in answer.json["error"]
    assert v2.pids("m") == before


@pytest.mark.parametrize(
    ("name", "datatype", "data"),
    [
        ("float", "FP64", [1.5]),
        ("int", "INT64", [3]),
        ("bool", "BOOL", [True]),
        ("str", "BYTES", ["text"]),
        ("array", "FP32", [1.0, 2.0]),
        ("half", "FP16", [0.5]),
    ],
)
async def test_22_python_s_types_have_datatypes(v2: Asked, name: str, datatype: str, data: list[Any]) -> None:
    (output,) = (await v2.infer("/v2/models/m/infer", {"inputs": [tensor(name)]})).json["outputs"]
    assert output == {"name": name, "datatype": datatype, "data": data, "shape": [len(data)]}


async def test_23_outputs_have_the_names_of_the_inputs_in_order(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m/infer", {"inputs": [tensor("int"), tensor("float")]})
    assert [(output["name"], output["data"]) for output in answer.json["outputs"]] == [("int", [3]), ("float", [1.5])]


async def test_24_there_may_be_more_outputs_than_inputs(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m/infer", {"inputs": [tensor("two")]})
    outputs = [(output["name"], output["data"]) for output in answer.json["outputs"]]
    assert (answer.status, outputs) == (200, [("two", [1]), ("output-1", [2])])


async def test_25_explanations_have_their_route(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m/explain", {"inputs": [tensor()]})
    assert answer.json["outputs"][0]["data"] == ["explained"]


async def test_26_an_unknown_model_is_404(v2: Asked) -> None:
    assert (await v2.infer("/v2/models/unknown/infer", {"inputs": [tensor()]})).status == 404


async def test_27_malformed_json_is_400_and_the_worker_lives(v2: Asked) -> None:
    before = v2.pids("m")
    answer = await v2.infer("/v2/models/m/infer", b"{oops")
    assert (answer.status, "not valid JSON" in answer.json["error"]) == (400, True)
    assert v2.pids("m") == before


async def test_28_each_request_of_a_batch_is_answered(v2: Asked) -> None:
    bodies = [{"id": str(n), "inputs": [tensor("x", [n])]} for n in range(4)]
    answers = await asyncio.gather(*(v2.infer("/v2/models/batched/infer", body) for body in bodies))
    assert [answer.status for answer in answers] == [200] * 4
    assert [(answer.json["id"], answer.json["outputs"][0]["data"]) for answer in answers] == [
        (str(n), [f"[{n}]"]) for n in range(4)
    ]


async def test_29_the_client_chooses_outputs(v2: Asked) -> None:
    body = {"inputs": [tensor("int"), tensor("float")], "outputs": [{"name": "float"}]}
    outputs = (await v2.infer("/v2/models/m/infer", body)).json["outputs"]
    assert [output["name"] for output in outputs] == ["float"]


async def test_30_parameters_do_no_harm(v2: Asked) -> None:
    body = {"inputs": [{**tensor("int"), "parameters": {"a": 1}}], "parameters": {"b": "c", "d": True}}
    assert (await v2.infer("/v2/models/m/infer", body)).status == 200


@pytest.mark.parametrize("flag", [False, True])
async def test_31_and_43_the_protocol_is_served_whatever_the_flag_says(tmp_path: Path, flag: bool) -> None:
    put_model(tmp_path / "store", "m", RAW)
    async with running_server(
        model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path, ts_open_inference_protocol=flag
    ) as server:
        await server.models.wait_until_ready()
        asked = Asked(server)
        assert (await asked.infer("/v2/models/m/infer", {})).status == 200
        assert (await asked.infer("/v2/health/live", method="GET")).json == {"live": True}
        assert (await asked.infer("/v2/health/ready", method="GET")).json == {"ready": True}


async def test_32_the_answer_names_the_model_as_it_was_registered(v2: Asked) -> None:
    assert (await v2.infer("/v2/models/alias/infer", {"inputs": [tensor()]})).json["model_name"] == "alias"


async def test_33_a_model_describes_itself_past_its_envelope(v1: Asked, v2: Asked) -> None:
    for asked, about in ((v1, "instances"), (v2, "tensors")):
        (description,) = (await asked.manage("GET", "/models/m?customized=true")).json
        assert description["customizedMetadata"] == {"about": about}


# -- v2 health and metadata ------------------------------------------------------------------------------------------


async def test_34_35_health(v2: Asked) -> None:
    assert (await v2.infer("/v2/health/live", method="GET")).json == {"live": True}
    answer = await v2.infer("/v2/health/ready", method="GET")
    assert (answer.status, answer.json) == (200, {"ready": True})


async def test_36_a_server_with_a_broken_model_is_alive_but_not_ready(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", "import nothing_of_that_name\n", "maxRetryTimeoutInSec: 0\n")
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        asked = Asked(server)
        answer = await asked.infer("/v2/health/ready", method="GET")
        assert (answer.status, answer.json) == (503, {"ready": False, "state": "broken"})
        assert (await asked.infer("/v2/health/live", method="GET")).status == 200
        answer = await asked.infer("/v2/models/m/ready", method="GET")
        assert (answer.status, answer.json["ready"], answer.json["state"]) == (503, False, "broken")
        (description,) = (await asked.manage("GET", "/models/m")).json
        assert description["state"] == "broken"


async def test_37_the_server_describes_itself(v2: Asked) -> None:
    body = (await v2.infer("/v2", method="GET")).json
    assert (body["name"], body["version"]) == ("Torchserve", Config().version)
    assert "binary_tensor_data" in body["extensions"]


async def test_38_a_model_describes_itself(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m", method="GET")
    expected = {"name": "m", "versions": ["1.0", "2.0"], "platform": "python", "inputs": [], "outputs": []}
    assert (answer.status, answer.json) == (200, expected)
    assert (await v2.infer("/v2/models/m/versions/2.0", method="GET")).json == expected


async def test_39_readiness_of_a_model(v2: Asked) -> None:
    answer = await v2.infer("/v2/models/m/ready", method="GET")
    assert (answer.status, answer.json) == (200, {"name": "m", "ready": True, "state": "ready"})
    assert (await v2.infer("/v2/models/unknown/ready", method="GET")).status == 404


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_40_the_path_chooses_a_version(v2: Asked, version: str) -> None:
    assert (await v2.infer(f"/v2/models/m/versions/{version}/ready", method="GET")).status == 200
    answer = await v2.infer(f"/v2/models/m/versions/{version}/infer", {"inputs": [tensor()]})
    assert (answer.status, answer.json["model_version"]) == (200, version)


@pytest.mark.parametrize(("method", "path"), [("GET", "/ready"), ("GET", ""), ("POST", "/infer"), ("POST", "/explain")])
async def test_41_an_unknown_version_is_404(v2: Asked, method: str, path: str) -> None:
    answer = await v2.infer(f"/v2/models/m/versions/9{path}", {"inputs": [tensor()]}, method=method)
    assert (answer.status, answer.json["type"]) == (404, "ModelVersionNotFoundException")


async def test_42_errors_have_the_members_of_both_protocols(v2: Asked) -> None:
    body = (await v2.infer("/v2/models/unknown/infer", {"inputs": [tensor()]})).json
    assert body["error"] == body["message"] == "Model not found: unknown"
    assert (body["code"], body["type"]) == (404, "ModelNotFoundException")


# -- binary tensors --------------------------------------------------------------------------------------------------


def binary_input(name: str, shape: list[int], datatype: str, size: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def split(answer: Answer) -> tuple[dict[str, Any], bytes]:
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    length = int(answer.headers[LENGTH.lower()])
    return json.loads(answer.body[:length]), answer.body[length:]


async def test_52_a_binary_tensor_is_what_its_json_would_be(v2: Asked) -> None:
    raw = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    binary = await v2.binary({"id": "x", "inputs": [binary_input("x", [2, 2], "FP32", 16)]}, raw)
    plain = await v2.infer("/v2/models/m/infer", {"id": "x", "inputs": [tensor("x", [1.0, 2.0, 3.0, 4.0], [2, 2])]})
    assert binary.json == plain.json
    assert binary.json["outputs"][0]["data"] == ["[[1.0, 2.0], [3.0, 4.0]]"]


async def test_52_a_large_one_arrives_through_shared_memory(v2: Asked) -> None:
    raw = bytes(range(256)) * 1000
    answer = await v2.binary({"inputs": [binary_input("x", [256_000], "UINT8", 256_000)]}, raw)
    assert answer.json["outputs"][0]["data"] == [repr(list(raw))]
    assert v2.server.arena.used == 0


async def test_53_both_kinds_of_tensors_in_one_request(v2: Asked) -> None:
    answer = await v2.binary({"inputs": [binary_input("x", [1], "INT8", 1), tensor("y", [7])]}, b"\xff")
    assert [output["data"] for output in answer.json["outputs"]] == [["[-1]"], ["[7]"]]


async def test_54_an_output_follows_the_json_on_request(v2: Asked) -> None:
    outputs = [{"name": "array", "parameters": {"binary_data": True}}]
    answer = await v2.infer("/v2/models/m/infer", {"inputs": [tensor("array")], "outputs": outputs})
    response, rest = split(answer)
    (output,) = response["outputs"]
    assert output == {"name": "array", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    assert rest == struct.pack("<2f", 1.0, 2.0)


async def test_55_what_is_said_of_one_output_counts_before_what_is_said_of_all(v2: Asked) -> None:
    body = {
        "inputs": [tensor("array"), tensor("int")],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "array"}, {"name": "int", "parameters": {"binary_data": False}}],
    }
    response, rest = split(await v2.infer("/v2/models/m/infer", body))
    assert response["outputs"][1]["data"] == [3]
    assert rest == struct.pack("<2f", 1.0, 2.0)


async def test_56_elements_of_bytes_may_be_empty_and_no_text(v2: Asked) -> None:
    raw = b"\x01\0\0\0\xff" + b"\0\0\0\0" + b"\x04\0\0\0text"
    answer = await v2.binary({"inputs": [binary_input("x", [3], "BYTES", len(raw))]}, raw)
    assert answer.json["outputs"][0]["data"] == [repr([b"\xff", b"", b"text"])]
    body = {"inputs": [tensor("bytes")], "parameters": {"binary_data_output": True}}
    assert split(await v2.infer("/v2/models/m/infer", body))[1] == raw


@pytest.mark.parametrize(("datatype", "raw"), [("FP16", struct.pack("<2e", 1.5, -2.0)), ("BF16", b"\xc0\x3f\x00\xc0")])
async def test_57_half_precision_comes_as_bytes(v2: Asked, datatype: str, raw: bytes) -> None:
    answer = await v2.binary({"inputs": [binary_input("x", [2], datatype, 4)]}, raw)
    assert answer.json["outputs"][0]["data"] == ["[1.5, -2.0]"]


@pytest.mark.parametrize(
    ("size", "raw", "length"),
    [(1, b"\x01", "9999"), (1, b"\x01", "-5"), (1, b"\x01", "many"), (2, b"\x01", None), (1, b"\x01\x02", None)],
)
async def test_58_lengths_that_contradict_each_other_are_400(
    v2: Asked, size: int, raw: bytes, length: str | None
) -> None:
    answer = await v2.binary({"inputs": [binary_input("x", [1], "INT8", size)]}, raw, length=length)
    assert (answer.status, answer.json["code"]) == (400, 400)


async def test_without_an_envelope_the_handler_gets_the_whole_body(plain: Asked) -> None:
    answer = await plain.binary({"inputs": []}, b"\x01\x02")
    assert answer.json["row"] == {"body": (b'{"inputs": []}' + b"\x01\x02").hex()}


# -- as KServe deploys it --------------------------------------------------------------------------------------------


async def test_59_60_63_one_address_for_inference_management_and_metrics(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", INSTANCES)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        shared = Address.parse(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    async with running_server(
        model_store=tmp_path / "store",
        load_models=("m",),
        temp_dir=tmp_path,
        inference_address=shared,
        management_address=shared,
    ) as server:
        await server.models.wait_until_ready()
        (description,) = (await ask(shared, "GET", "/models/m?customized=false")).json
        assert [worker["status"] for worker in description["workers"]] == ["READY"]
        assert (await ask(shared, "GET", "/models/m/1.0")).json[0]["modelVersion"] == "1.0"
        (description,) = (await ask(shared, "GET", "/models/m?customized=true")).json
        assert description["customizedMetadata"] == {"about": "instances"}
        assert (await ask(shared, "POST", "/predictions/m", 1, JSON)).status == 200
        assert (await ask(shared, "POST", "/models/m/invoke", 1, JSON)).status == 200
        assert (await ask(shared, "GET", "/v1/models/m")).json == {"name": "m", "ready": True}
        own = server.address(Listener.METRICS)
        assert own != shared
        for address in (shared, own):
            answer = await ask(address, "GET", "/metrics")
            assert (answer.status, b"ts_inference_requests_total" in answer.body) == (200, True)
        assert (await ask(own, "GET", "/models")).status == 404
