"""Shares of the traffic and reloading, asked for over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_serving import Answer, Client, put_model

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

SAYS = "def handle(data, context):\n    return data and [WORD for _ in data]\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A model ``says`` whose versions 1.0, the default one, and 2.0 answer with their numbers."""
    for version in ("1.0", "2.0"):
        put_model(
            tmp_path,
            f"says{version}",
            SAYS.replace("WORD", repr(f"version {version}")),
            "minWorkers: 1\nmaxWorkers: 1\n",
        )
        manifest = tmp_path / f"says{version}" / "MAR-INF" / "MANIFEST.json"
        model = {"modelName": "says", "modelVersion": version, "handler": "handler.py", "configFile": "config.yaml"}
        manifest.write_text(json.dumps({"runtime": "python", "model": model}))
    async with running_server(model_store=tmp_path, load_models=("says1.0", "says2.0"), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    client = await Client.connect(server)
    yield client
    await client.close()


async def manage(server: Server, method: str, path: str, body: Any = None) -> Answer:
    client = await Client.connect(server, Listener.MANAGEMENT)
    try:
        return await client.ask(method, path, b"" if body is None else json.dumps(body).encode())
    finally:
        await client.close()


async def answers(client: Client, count: int, path: str = "/predictions/says") -> Counter[str]:
    return Counter([(await client.ask("POST", path, b"x")).body.decode() for _ in range(count)])


@pytest.mark.parametrize(
    "path",
    ["/predictions/says", "/v1/models/says:predict", "/v2/models/says/infer", "/says/predict", "/explanations/says"],
)
async def test_every_route_that_names_no_version_is_shared(server: Server, client: Client, path: str) -> None:
    answer = await manage(server, "PUT", "/models/says/traffic", {"weights": {"1.0": 70, "2.0": 30}})
    shared = {"modelName": "says", "defaultVersion": "1.0", "weights": {"1.0": 70, "2.0": 30}}
    assert (answer.status, answer.json) == (200, shared)
    assert (await manage(server, "GET", "/models/says/traffic")).json == shared
    counts = await answers(client, 100, path)
    assert 28 <= counts["version 2.0"] <= 32
    assert counts.total() == counts["version 1.0"] + counts["version 2.0"]


@pytest.mark.parametrize("path", ["/predictions/says/2.0", "/v2/models/says/versions/2.0/infer"])
async def test_a_request_that_names_a_version_gets_it(server: Server, client: Client, path: str) -> None:
    await manage(server, "PUT", "/models/says/traffic", {"weights": {"1.0": 99, "2.0": 1}})
    assert await answers(client, 20, path) == {"version 2.0": 20}


async def test_describe_shows_the_weights(server: Server) -> None:
    await manage(server, "PUT", "/models/says/traffic", {"weights": {"1.0": 70, "2.0": 30}})
    described = (await manage(server, "GET", "/models/says/all")).json
    assert {each["modelVersion"]: each["trafficWeight"] for each in described} == {"1.0": 70, "2.0": 30}


@pytest.mark.parametrize("undo", [("/models/says/traffic", {}), ("/models/says/1.0/set-default", None)])
async def test_sharing_can_be_undone(server: Server, client: Client, undo: tuple[str, Any]) -> None:
    await manage(server, "PUT", "/models/says/traffic", {"weights": {"1.0": 50, "2.0": 50}})
    path, body = undo
    assert (await manage(server, "PUT", path, body)).status == 200
    assert (await manage(server, "GET", "/models/says/traffic")).json["weights"] == {}
    assert await answers(client, 10) == {"version 1.0": 10}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/models/says/traffic", {"weights": {"1.0": -1}}, 400, "The weight of 1.0 is -1."),
        ("/models/says/traffic", {"weights": {"1.0": 0}}, 400, "No weight is above 0."),
        ("/models/says/traffic", {"weights": [1]}, 400, "weights must be an object of versions and numbers."),
        ("/models/says/traffic", {"shares": {}}, 400, "There is no parameter shares."),
        ("/models/says/traffic", {"shadow": "2.0"}, 400, "shadow must be an object with a version and a percentage."),
        (
            "/models/says/traffic",
            {"shadow": {"version": "2.0", "percentage": "all"}},
            400,
            "The percentage of the shadow is 'all'.",
        ),
        ("/models/says/traffic", [], 400, "The body must be a JSON object."),
        ("/models/says/traffic", {"weights": {"3.0": 1}}, 404, "Model version: 3.0 does not exist for model: says"),
        ("/models/none/traffic", {"weights": {"3.0": 1}}, 404, "Model not found: none"),
        ("/models/says/9/reload", None, 404, "Model version: 9 does not exist for model: says"),
    ],
)
async def test_what_cannot_be_done_says_why(server: Server, path: str, body: Any, status: int, message: str) -> None:
    answer = await manage(server, "PUT", path, body)
    assert (answer.status, answer.json["message"]) == (status, message)


async def test_a_shadow_is_asked_and_answers_nobody(server: Server, client: Client) -> None:
    set_ = await manage(server, "PUT", "/models/says/traffic", {"shadow": {"version": "2.0", "percentage": 50}})
    counts = {"mirrored": 0, "refused": 0, "same": 0, "different": 0, "failed": 0}
    assert set_.json == {
        "modelName": "says", "defaultVersion": "1.0", "weights": {},
        "shadow": {"version": "2.0", "percentage": 50, **counts},
    }  # fmt: skip
    assert await answers(client, 20) == {"version 1.0": 20}
    async with asyncio.timeout(30):  # the answers of the shadow come when they come
        shadow: dict[str, int] = {}
        while shadow.get("different") != 10:
            shadow = (await manage(server, "GET", "/models/says/traffic")).json["shadow"]
    assert {name: shadow[name] for name in counts} == {**counts, "mirrored": 10, "different": 10}


async def test_a_large_body_is_mirrored_and_leaves_no_memory_behind(server: Server, client: Client) -> None:
    await manage(server, "PUT", "/models/says/traffic", {"shadow": {"version": "2.0", "percentage": 100}})
    body = bytes(3_000_000)
    for _ in range(3):
        assert (await client.ask("POST", "/predictions/says", body)).body == b"version 1.0"
    async with asyncio.timeout(30):
        while (await manage(server, "GET", "/models/says/traffic")).json["shadow"]["different"] != 3:
            pass
    assert server.arena.used == 0


async def test_a_version_is_replaced_by_what_its_archive_is_now(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "says1.0" / "handler.py").write_text(SAYS.replace("WORD", "'something new'"))
    answer = await manage(server, "PUT", "/models/says/1.0/reload")
    assert (answer.status, answer.json) == (200, {"status": 'Model "says" version 1.0 replaced by version 1.0'})
    assert await answers(client, 3) == {"something new": 3}


async def test_an_archive_that_does_not_load_leaves_the_old_version(
    server: Server, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "says1.0" / "handler.py").write_text("import nowhere_to_be_found\n")
    answer = await manage(server, "PUT", "/models/says/1.0/reload")
    assert (answer.status, "nowhere_to_be_found" in answer.json["hint"]) == (500, True)
    assert await answers(client, 3) == {"version 1.0": 3}
