"""Envelopes in a real server: bodies over real sockets, handlers in real workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mariner.auth import Listener
from mariner.config import Address
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

SQUARES = """
def handle(data, context):
    if data is None:
        return None
    values = [item["data"] if isinstance(item, dict) else item for item in data]
    return [value * value for value in values]
"""
DESCRIBES = """
class Handler:
    def initialize(self, context):
        pass
    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"about": "me"}]
        return list(data)
"""
MICRO = """
from ts.handler_utils.micro_batching import MicroBatching
class Handler:
    def __init__(self):
        self.handle = MicroBatching(self, micro_batch_size=2, parallelism={"inference": 2})
    def initialize(self, context):
        pass
    def preprocess(self, data):
        return [row["body"] for row in data]
    def inference(self, data):
        if "bad" in data:
            raise ValueError("bad")
        return [{"said": item} for item in data]
    def postprocess(self, data):
        return data
"""


# A batch leaves when all its requests are there, not before.
BATCHES = "minWorkers: 1\nmaxWorkers: 1\nbatchingPolicy: fill\nmaxBatchDelay: 20000\nbatchSize: "


def put_model(store: Path, name: str, source: str, config: str = "") -> None:
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    (place / "handler.py").write_text(source)
    (place / "config.yaml").write_text(config or "minWorkers: 1\nmaxWorkers: 1\n")
    model = {"modelName": name, "modelVersion": "2.0", "handler": "handler.py", "configFile": "config.yaml"}
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))


async def ask(address: Address, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}{f'Content-Type: {kind}' if kind else 'Accept: */*'}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    first, _, content = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(content)


async def predict(server: Server, body: Any, model: str = "squares", kind: str = "application/json") -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(server.address(Listener.INFERENCE), "POST", f"/predictions/{model}", raw, kind)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    put_model(place, "squares", SQUARES)
    put_model(place, "batched", SQUARES, f"{BATCHES} 4\n")
    return place


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", ""])
async def test_predictions_with_the_old_name_of_kserve(store: Path, tmp_path: Path, kind: str) -> None:
    async with running_server(
        model_store=store, load_models=("squares",), temp_dir=tmp_path, service_envelope="kfserving"
    ) as server:
        await server.models.wait_until_ready()
        body = {"instances": [{"data": 3}, {"data": 4}]}
        assert await predict(server, body, kind=kind) == (200, {"predictions": [9, 16]})


@pytest.mark.parametrize("envelope", ["kserve", "json"])
async def test_in_a_batch_a_malformed_body_fails_alone(store: Path, tmp_path: Path, envelope: str) -> None:
    async with running_server(
        model_store=store,
        load_models=("batched",),
        temp_dir=tmp_path,
        service_envelope=envelope,
    ) as server:
        await server.models.wait_until_ready()
        (version,) = server.models.registry
        pid = version.pool.workers[0].pid
        bodies = [{"instances": [1]}, b"{oops", {"instances": [2, 3]}, {"instances": "x"}]
        answers = await asyncio.gather(*(predict(server, body, "batched") for body in bodies))
        assert [status for status, _ in answers] == [200, 400, 200, 400]
        assert (answers[0][1], answers[2][1]) == ({"predictions": [1]}, {"predictions": [4, 9]})
        assert (answers[1][1]["code"], "not valid JSON" in answers[1][1]["message"]) == (400, True)
        assert version.pool.workers[0].pid == pid


async def test_tensors_of_several_requests_in_one_batch(store: Path, tmp_path: Path) -> None:
    async with running_server(
        model_store=store,
        load_models=("batched",),
        temp_dir=tmp_path,
        service_envelope="kservev2",
    ) as server:
        await server.models.wait_until_ready()
        tensor = {"name": "x", "shape": [], "datatype": "INT64"}
        bodies = [{"id": f"mine-{n}", "inputs": [{**tensor, "data": [n]}]} for n in range(4)]
        answers = await asyncio.gather(*(predict(server, body, "batched") for body in bodies))
        output = {"name": "x", "datatype": "INT64", "shape": [1]}
        assert answers == [
            (
                200,
                {
                    "id": f"mine-{n}",
                    "model_name": "batched",
                    "model_version": "2.0",
                    "outputs": [{**output, "data": [n * n]}],
                },
            )
            for n in range(4)
        ]


async def test_a_model_describes_itself_past_its_envelope(store: Path, tmp_path: Path) -> None:
    put_model(store, "describes", DESCRIBES)
    async with running_server(
        model_store=store, load_models=("describes",), temp_dir=tmp_path, service_envelope="kservev2"
    ) as server:
        await server.models.wait_until_ready()
        address = server.address(Listener.MANAGEMENT)
        status, description = await ask(address, "GET", "/models/describes?customized=true")
        assert (status, description[0]["customizedMetadata"]) == (200, {"about": "me"})


async def test_an_unknown_envelope_fails_the_load(store: Path, tmp_path: Path) -> None:
    async with running_server(model_store=store, temp_dir=tmp_path, service_envelope="nonsense") as server:
        address = server.address(Listener.MANAGEMENT)
        status, answer = await ask(address, "POST", "/models?url=squares&initial_workers=1&synchronous=true")
        assert status == 500
        assert "No request envelope 'nonsense'" in answer["hint"]


async def test_micro_batches_answer_and_an_exception_in_a_thread_is_answered_too(store: Path, tmp_path: Path) -> None:
    put_model(store, "micro", MICRO, f"{BATCHES} 3\n")
    async with running_server(model_store=store, load_models=("micro",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        good = await asyncio.gather(*(predict(server, text, "micro") for text in ("a", "b", "c")))
        assert good == [(200, {"said": text}) for text in ("a", "b", "c")]
        bad = await asyncio.gather(*(predict(server, text, "micro") for text in ("a", "bad", "c")))
        assert bad[1][0] == 503
