"""The routes of SageMaker and of TorchServe's predecessors, over a socket."""

from __future__ import annotations

import json

import pytest
from conftest import Running, Start
from http_peer import get, post

from mariner.auth import Listener

FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = "Content-Type: multipart/form-data; boundary=x"
FIELDS = (
    b'--x\r\nContent-Disposition: form-data; name="data"; filename="f"\r\n\r\nhello\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model_name"\r\n\r\nfield\r\n--x--\r\n'
)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("path", "model", "version"),
    [
        ("/models/m/invoke", "m", None),
        ("/models/m/invoke/", "m", None),
        ("/m/predict", "m", None),
        ("/m/predict//", "m", None),
        ("/m/1.0/predict", "m", "1.0"),
        ("/v1/x/predict", "v1", "x"),
        ("/%6D%2Fpredict", "m", None),
        ("/invocations?model_name=m", "m", None),
        ("/invocations/?model_name=m", "m", None),
    ],
)
async def test_old_paths_predict(running: Running, method: str, path: str, model: str, version: str | None) -> None:
    client = await running.connect()
    for _ in "12":  # the second time from memory
        assert (await client.ask(post(path, b"x", method=method))).status == 200
        assert running.models.submitted[-1] == (model, version, None)


async def test_their_query_parameters_reach_the_handler_and_nothing_is_added_to_the_headers(running: Running) -> None:
    client = await running.connect()
    for path in ("/m/predict?data=test&data=2", "/models/m/invoke?data=test&data=2"):
        for _ in "12":
            await client.ask(get(path))
            assert running.models.parts == [("data", "", b"test"), ("data", "", b"2"), ("body", "", b"")]
            assert running.models.headers == [("Host", "127.0.0.1")]


async def test_the_name_in_the_query_reaches_the_handler_too(running: Running) -> None:
    client = await running.connect()
    await client.ask(post("/invocations?model_name=m", b"x"))
    assert running.models.parts == [("model_name", "", b"m"), ("body", "", b"x")]


@pytest.mark.parametrize(
    ("query", "initial", "expected"),
    [
        ("?model_name=query", "initial", "query"),
        ("", "initial", "initial"),
        ("", None, "field"),
        ("?x=1", None, "field"),
    ],
)
async def test_invocations_find_their_model(running: Running, query: str, initial: str | None, expected: str) -> None:
    running.models.initial = initial
    running.models.behaviour = lambda job: None
    client = await running.connect()
    await client.send(post(f"/invocations{query}", FIELDS, MULTIPART))
    await running.models.job()
    assert running.models.submitted == [(expected, None, None)]


async def test_an_urlencoded_field_names_a_model(running: Running) -> None:
    client = await running.connect()
    await client.ask(post("/invocations?model_name=", b"a=1&model_name=caf%C3%A9", FORM))
    assert running.models.submitted == [("café", None, None)]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"x", "text/plain"), (b"model_name=", FORM[14:]), (b'{"model_name": "m"}', "application/json")],
)
async def test_without_a_name_invocations_are_400(running: Running, body: bytes, content_type: str) -> None:
    client = await running.connect()
    answer = await client.ask(post("/invocations", body, f"Content-Type: {content_type}"))
    error = json.loads(answer.body)
    assert (error["code"], error["type"], error["message"]) == (
        400,
        "BadRequestException",
        "Parameter model_name is required.",
    )
    assert not running.models.jobs


async def test_a_large_body_names_no_model_and_is_released(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post("/invocations", b"x" * 70_000, "Content-Type: application/octet-stream"))
    assert answer.status == 400
    assert running.arena.used == 0


async def test_a_version_is_described_where_models_are_invoked(start: Start) -> None:
    running = await start(Listener.INFERENCE, Listener.MANAGEMENT)
    client = await running.connect()
    assert (await client.ask(get("/models/m/1.0"))).status == 200
    assert (await client.ask(get("/models/m/1.0?min_worker=2", method="PUT"))).status == 202
    assert (await client.ask(get("/models/m/1.0", method="DELETE"))).status == 200
    assert running.models.calls == [
        ("describe", "m", "1.0", False, False),
        ("scale", "m", "1.0", 2, 2, False),
        ("unregister", "m", "1.0"),
    ]
    assert (await client.ask(post("/models/m/invoke", b"x"))).body == b"x"


@pytest.mark.parametrize("path", ["/models/m/foo", "/models/m", "/models", "/invocations/m"])
async def test_paths_beside_them_are_404(running: Running, path: str) -> None:
    client = await running.connect()
    assert (await client.ask(post(path, b"x"))).status == 404
