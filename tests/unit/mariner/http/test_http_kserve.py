"""KServe v1 and the open inference protocol, over a socket. What they mean to real models: tests/compat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Running, Start
from http_peer import fail, get, post

from mariner.auth import Access, Keys, KeyType, Listener
from mariner.config import TokenMode
from mariner.errors import ModelNotFound, QueueFull, VersionNotFound
from mariner.jobs import Job, Reply, pack_headers
from mariner.lifecycle import Phase, Readiness

ALL = tuple(Listener)


async def ask(running: Running, path: str, method: str = "GET") -> tuple[int, Any]:
    client = await running.connect()
    answer = await client.ask(get(path, method=method))
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)


def reply(body: bytes, *headers: tuple[str, str]) -> Any:
    def behaviour(job: Job) -> None:
        job.end(Reply(1, body, headers=pack_headers(headers)))

    return behaviour


# -- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize(
    ("path", "version", "explain"),
    [
        ("/v1/models/m:predict", None, "False"),
        ("/v1/models/m%3Apredict", None, "False"),
        ("/v1/models/m:predict/?x=1", None, "False"),
        ("/v1/models/m:explain", None, "True"),
        ("/v2/models/m/infer", None, "False"),
        ("/v2/models/m/explain", None, "True"),
        ("/v2/models/m/versions/1.0/infer", "1.0", "False"),
        ("/v2/models/m/versions/1.0/explain", "1.0", "True"),
    ],
)
async def test_both_protocols_predict(
    running: Running, method: str, path: str, version: str | None, explain: str
) -> None:
    client = await running.connect()
    for _ in "12":  # the second time from memory
        answer = await client.ask(post(path, b"x", "EXPLAIN: sent", method=method))
        assert answer.body == b"x"
        assert running.models.submitted[-1] == ("m", version, None)
        assert running.models.parts == [("body", "", b"x")]
        assert [pair for pair in running.models.headers if pair[0].lower() in {"explain", "url_path"}] == [
            ("explain", explain)
        ]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b'{"predictions": []}', [], "application/json"),
        (b"[1]", [("x", "y")], "application/json"),
        (b"{}", [("Content-Type", "text/html")], "text/html"),
        (b"plain", [], None),
        (b"{1", [], None),
        (b"", [], None),
    ],
)
async def test_json_is_called_json_unless_the_handler_says_otherwise(
    running: Running, body: bytes, headers: list[tuple[str, str]], expected: str | None
) -> None:
    running.models.behaviour = reply(body, *headers)
    client = await running.connect()
    answer = await client.ask(post("/v2/models/m/infer", b"x"))
    assert (answer.body, answer.headers.get("content-type")) == (body, expected)


async def test_predictions_stay_without_a_content_type(running: Running) -> None:
    running.models.behaviour = reply(b"{}")
    client = await running.connect()
    assert "content-type" not in (await client.ask(post("/predictions/m", b"x"))).headers


@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/v2/models/m/infer"])
async def test_errors_have_the_members_of_both_client_families(running: Running, path: str) -> None:
    client = await running.connect()
    running.models.error = ModelNotFound("Model not found: m")
    refused = json.loads((await client.ask(post(path, b"x"))).body)
    running.models.error = None
    running.models.behaviour = fail(QueueFull("Full."))
    failed = json.loads((await client.ask(post(path, b"x"))).body)
    assert [refused[key] for key in ("code", "type", "message", "error")] == [
        404,
        "ModelNotFoundException",
        "Model not found: m",
        "Model not found: m",
    ]
    assert (failed["code"], failed["error"]) == (503, "Full.")


async def test_other_routes_have_torchserve_s_members_alone(running: Running) -> None:
    running.models.error = ModelNotFound("Model not found: m")
    client = await running.connect()
    assert "error" not in json.loads((await client.ask(post("/predictions/m", b"x"))).body)


# -- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
async def test_every_listener_tells_about_health(start: Start, kind: Listener) -> None:
    running = await start(kind)
    running.models.models = [("m", "m.mar")]
    assert await ask(running, "/v2/health/live") == (200, {"live": True})
    assert await ask(running, "/v2/health/ready") == (200, {"ready": True})
    assert await ask(running, "/v1/models") == (200, {"models": ["m"]})
    assert await ask(running, "/v1/models/m") == (200, {"name": "m", "ready": True})
    assert (await ask(running, "/v2/models/m/ready"))[0] == 200


@pytest.mark.parametrize(
    ("condition", "state"),
    [
        (Phase.STARTING, "starting"),
        (Readiness.LOADING, "loading"),
        (Readiness.BROKEN, "broken"),
        (Readiness.DRAINING, "draining"),
        (Phase.STOPPING, "draining"),
    ],
)
async def test_a_server_that_is_not_ready_is_alive_and_says_why(
    running: Running, condition: Readiness | Phase, state: str
) -> None:
    running.models.server_condition = condition
    assert await ask(running, "/v2/health/ready") == (503, {"ready": False, "state": state})
    assert await ask(running, "/v2/health/live") == (200, {"live": True})


@pytest.mark.parametrize("path", ["/v1/models/m", "/v2/models/m/ready", "/ping", "/predictions/m", "/nowhere"])
async def test_a_server_that_starts_answers_for_itself_and_for_no_model(running: Running, path: str) -> None:
    running.models.phase = Phase.STARTING
    assert await ask(running, "/v2/health/live") == (200, {"live": True})
    status, body = await ask(running, path)
    assert (status, body["type"], body["reason"]) == (503, "ServiceUnavailableException", "starting")
    running.models.phase = Phase.SERVING
    answer = await (await running.connect()).ask(get(path))
    assert answer.status == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize("state", [state for state in Readiness if state is not Readiness.READY])
async def test_a_model_that_is_not_ready_says_why(running: Running, state: Readiness) -> None:
    running.models.state = state
    assert await ask(running, "/v1/models/m") == (200, {"name": "m", "ready": False})
    status, body = await ask(running, "/v2/models/m/versions/1.0/ready")
    assert (status, body) == (
        503,
        {"name": "m", "ready": False, "state": state.value, "error": f"Model m is not ready: it is {state.value}."},
    )
    assert running.models.calls == [("serves", "m", None), ("serves", "m", "1.0"), ("readiness", "m", "1.0")]


async def test_readiness_of_what_is_not_there_is_404(running: Running) -> None:
    running.models.error = VersionNotFound("Model version: 9 does not exist for model: m")
    for path in ("/v1/models/m", "/v2/models/m/ready", "/v2/models/m/versions/9/ready", "/v2/models/m"):
        status, body = await ask(running, path)
        assert (status, body["type"], body["error"]) == (404, "ModelVersionNotFoundException", body["message"])


@pytest.mark.parametrize("path", ["/v1/models/m", "/v1/models", "/v2/models/m", "/v2/models/m/ready"])
async def test_readiness_and_metadata_are_read_only(running: Running, path: str) -> None:
    status, body = await ask(running, path, "POST")
    assert (status, body["type"]) == (405, "MethodNotAllowedException")


# -- metadata --------------------------------------------------------------------------------------------------------


async def test_the_server_describes_itself(running: Running) -> None:
    status, body = await ask(running, "/v2/")
    assert (status, body["name"], body["version"]) == (200, "Torchserve", running.models.config.version)
    assert body["extensions"] == ["kserve", "kubeflow", "binary_tensor_data"]
    assert body["extenstion"] == ["kserve", "kubeflow"]


async def test_models_are_described_to_clients_of_the_protocol(running: Running) -> None:
    running.models.models = [("a", "a.mar"), ("b", "b.mar")]
    assert await ask(running, "/v2/models") == (200, {"models": ["a", "b"]})
    metadata = {"name": "m", "versions": ["1.0", "2.0"], "platform": "pytorch_pt2", "inputs": [], "outputs": []}
    assert await ask(running, "/v2/models/m") == (200, metadata)
    assert await ask(running, "/v2/models/m/versions/2.0") == (200, metadata)
    assert running.models.calls == [("metadata", "m", None), ("metadata", "m", "2.0")]


@pytest.mark.parametrize("kind", [Listener.MANAGEMENT, Listener.METRICS])
async def test_other_listeners_do_not_predict(start: Start, kind: Listener) -> None:
    running = await start(kind)
    for path in ("/m/predict", "/invocations", "/v2/models/m/infer", "/v2/models/m", "/v2"):
        assert (await ask(running, path))[0] == 404


# -- access ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    given = {type_: f"{type_.value}-0123456789abcdef" for type_ in KeyType}
    return Keys(tmp_path / "key_file.json", lifetime=60, given=given, clock=lambda: 0)


@pytest.mark.parametrize(
    ("kind", "key"), [(Listener.INFERENCE, "inference"), (Listener.MANAGEMENT, "management"), (Listener.METRICS, None)]
)
async def test_where_every_call_needs_a_key_so_does_health(
    start: Start, keys: Keys, kind: Listener, key: str | None
) -> None:
    running = await start(kind, access=Access(TokenMode.ON, keys))
    client = await running.connect()
    for path in ("/v2/health/live", "/v1/models/m", "/v2/models/m/ready"):
        with_key = get(path, f"Authorization: Bearer {key}-0123456789abcdef")
        assert (await client.ask(with_key)).status == 200
        assert (await client.ask(get(path))).status == (400 if key else 200)  # also after it was answered once


async def test_by_default_health_needs_no_key_from_anywhere(start: Start, keys: Keys) -> None:
    running = await start(Listener.MANAGEMENT, access=Access(TokenMode.AUTO, keys))
    client = await running.connect()
    forwarded = "X-Forwarded-For: 203.0.113.9"
    assert (await client.ask(get("/models", forwarded))).status == 400
    assert (await client.ask(get("/v2/health/ready", forwarded))).status == 200
    assert (await client.ask(get("/v1/models/m", forwarded))).status == 200
