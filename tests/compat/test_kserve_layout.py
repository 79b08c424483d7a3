"""The layout that KServe mounts: archives in one directory, a generated configuration in another, both read-only."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_serving import Answer, Client

from mariner.auth import Listener
from mariner.config import load_config
from mariner.properties import parse_properties
from mariner.serve import Server

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
NAME = "dev-mnist"
SECONDS = 30.0  # until requests that were sent should wait
GENERATED = """\
inference_address=http://0.0.0.0:8085
management_address=http://0.0.0.0:8081
number_of_netty_threads=4
service_envelope=kfserving
install_py_dep_per_model=true
job_queue_size=10
model_store=/mnt/models/model-store
model_snapshot={"name": "startup.cfg", "modelCount": 1, "models": {"<NAME>": {"1.0": {"defaultVersion": true, \
"marName": "<NAME>.mar", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1, "maxBatchDelay": 5000, \
"responseTimeout": 120}}}}
"""
HANDLER = """
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    for item in data:
        if item["data"] == "wait":
            Path("SIGNS", "running").write_text("yes")
            Path("SIGNS", "go").read_text()
    return [f"{item['data']} by {context.model_name}" for item in data]
"""


def contents(place: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in [place, *place.rglob("*")])


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """What KServe's storage initialiser leaves in the mount; the addresses are those of this machine, at free ports."""
    source, mount = tmp_path / "source", tmp_path / "mnt" / "models"
    store, config = mount / "model-store", mount / "config"
    for directory in (source, store, config):
        directory.mkdir(parents=True)
    (source / "handler.py").write_text(HANDLER.replace("SIGNS", str(tmp_path)))
    (source / "requirements.txt").write_text("--no-index\npsutil\n")  # which the server's environment has
    words = f"--model-name {NAME} --version 1.0 --handler handler.py --requirements-file requirements.txt"
    command = [COMMANDS / "torch-model-archiver", *words.split(), "--export-path", store]
    subprocess.run(command, cwd=source, check=True)
    text = GENERATED.replace("<NAME>", NAME).replace("/mnt/models", str(mount))
    text = text.replace("0.0.0.0:8085", "127.0.0.1:0").replace("0.0.0.0:8081", "127.0.0.1:0")
    (config / "config.properties").write_text(text)
    for path in (store, config, store / f"{NAME}.mar", config / "config.properties"):
        path.chmod(path.stat().st_mode & ~0o222)  # no hindrance to root, hence the comparison afterwards
    return mount


@pytest.fixture
async def server(mount: Path, tmp_path: Path) -> AsyncIterator[Server]:
    """Started with the flags that KServe's runtime passes."""
    for name in ("work", "temp"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "running")
    os.mkfifo(tmp_path / "go")
    flags = {"model_store": str(mount / "model-store"), "tsConfigFile": str(mount / "config" / "config.properties")}
    environment = {"TEMP": str(tmp_path / "temp"), "MARINER_METRICS_ADDRESS": "http://127.0.0.1:0"}
    environment |= {"MARINER_DISABLE_SYSTEM_METRICS": "true", "MARINER_AUTOSCALE": "false"}
    before = contents(mount)
    server = await Server.start(load_config(flags, environment, tmp_path / "work"))
    try:
        await server.models.wait_until_ready()
        yield server
    finally:
        await server.stop()
    assert contents(mount) == before


async def ask(server: Server, listener: Listener, method: str, path: str, value: Any = None) -> Answer:
    client = await Client.connect(server, listener)
    try:
        body = b"" if value is None else json.dumps(value).encode()
        return await client.ask(method, path, body, Content_Type="application/json")
    finally:
        await client.close()


def instances(*values: str) -> dict[str, Any]:
    return {"instances": [{"data": value} for value in values]}


def test_the_generated_file_has_these_eight_keys() -> None:
    file = parse_properties(GENERATED)
    assert list(file) == [
        "inference_address", "management_address", "number_of_netty_threads", "service_envelope",
        "install_py_dep_per_model", "job_queue_size", "model_store", "model_snapshot",
    ]  # fmt: skip
    assert json.loads(file["model_snapshot"].value)["models"]["<NAME>"]["1.0"]["marName"] == "<NAME>.mar"


async def test_the_model_of_the_snapshot_runs_with_the_limits_of_the_snapshot(server: Server) -> None:
    (model,) = (await ask(server, Listener.MANAGEMENT, "GET", f"/models/{NAME}")).json
    wanted = {
        "modelVersion": "1.0", "minWorkers": 1, "maxWorkers": 5, "batchSize": 1, "maxBatchDelay": 5000,
        "responseTimeout": 120,
    }  # fmt: skip
    assert {key: model[key] for key in wanted} == wanted
    assert [worker["status"] for worker in model["workers"]] == ["READY"]
    assert server.models.registry.is_default(server.models.registry.get(NAME, "1.0"))


async def test_the_envelope_turns_instances_into_predictions(server: Server) -> None:
    answer = await ask(server, Listener.INFERENCE, "POST", f"/predictions/{NAME}", instances("a", "b"))
    assert (answer.status, answer.json) == (200, {"predictions": [f"a by {NAME}", f"b by {NAME}"]})


async def test_the_v1_protocol_answers_under_the_name_of_the_snapshot(server: Server) -> None:
    ready = await ask(server, Listener.INFERENCE, "GET", f"/v1/models/{NAME}")
    assert (ready.status, ready.json["ready"]) == (200, True)
    answer = await ask(server, Listener.INFERENCE, "POST", f"/v1/models/{NAME}:predict", instances("a"))
    assert (answer.status, answer.json) == (200, {"predictions": [f"a by {NAME}"]})


async def test_the_requirements_are_met_without_a_download_and_without_writing_to_the_mount(
    server: Server, tmp_path: Path
) -> None:
    kept = list((tmp_path / "temp").glob("mariner-cache-*/packages/*.lock"))
    assert len(kept) == 1  # pip was asked; the fixture compares the mount
    answer = await ask(server, Listener.INFERENCE, "POST", f"/predictions/{NAME}", instances("a"))
    assert answer.status == 200


async def test_one_request_runs_ten_wait_and_the_next_is_refused(server: Server, tmp_path: Path) -> None:
    path, body = f"/predictions/{NAME}", json.dumps(instances("wait")).encode()
    clients = [await Client.connect(server) for _ in range(11)]
    await clients[0].send("POST", path, body, Content_Type="application/json")
    assert await asyncio.to_thread((tmp_path / "running").read_text) == "yes"
    plain = json.dumps(instances("a")).encode()
    for client in clients[1:]:
        await client.send("POST", path, plain, Content_Type="application/json")
    async with asyncio.timeout(SECONDS):  # the requests arrive when they do
        status: dict[str, int] = {}
        while status.get("pendingRequests") != 10:
            (described,) = (await ask(server, Listener.MANAGEMENT, "GET", f"/models/{NAME}")).json
            status = described["jobQueueStatus"]
    assert status["remainingCapacity"] == 0
    refused = await ask(server, Listener.INFERENCE, "POST", path, instances("a"))
    assert (refused.status, refused.json["reason"]) == (503, "queue_full")
    await asyncio.to_thread((tmp_path / "go").write_text, "now")
    answers = [await client.answer() for client in clients]
    assert [answer.status for answer in answers] == [200] * 11
    for client in clients:
        await client.close()
