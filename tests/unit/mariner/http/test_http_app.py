"""Routes, access, errors and CORS, over a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from conftest import Running, Start
from http_peer import FakeModelServer, get, post, until

from mariner.auth import Access, Keys, KeyType, Listener
from mariner.config import TokenMode
from mariner.errors import ConfigurationError, Draining, MarinerError, ModelNotFound, QueueFull, VersionNotFound
from mariner.http.connections import Limits
from mariner.http.routes import ROUTES
from mariner.jobs import Job, Reply, pack_headers

NOT_FOUND = "Requested resource is not found, please refer to API document."
NOT_ALLOWED = "Requested method is not allowed, please refer to API document."
ALL = tuple(Listener)


async def status(running: Running, request: bytes) -> int:
    client = await running.connect()
    return (await client.ask(request)).status


async def error(running: Running, request: bytes) -> tuple[int, str, str]:
    client = await running.connect()
    body = json.loads((await client.ask(request)).body)
    return body["code"], body["type"], body["message"]


# -- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ping", "/ping/", "/ping/x/y", "/%70ing", "/ping?x=1", "http://anywhere/ping"])
async def test_ping_answers_any_method_and_suffix(running: Running, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        client = await running.connect()
        answer = await client.ask(get(path, method=method))
        assert (answer.status, answer.body) == (200, b'{\n  "status": "Healthy"\n}\n')
        assert answer.headers["content-type"] == "application/json"


async def test_ping_says_when_a_model_is_broken(running: Running) -> None:
    running.models.is_healthy = False
    client = await running.connect()
    answer = await client.ask(get("/ping"))
    assert (answer.status, json.loads(answer.body)) == (500, {"status": "Unhealthy"})


# -- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_any_method_predicts(running: Running, method: str) -> None:
    client = await running.connect()
    assert (await client.ask(post(body=b"x", method=method))).body == b"x"


@pytest.mark.parametrize(
    ("path", "model", "version", "url_path", "explain"),
    [
        ("/predictions/m", "m", None, "", "False"),
        ("/predictions/m/", "m", None, "", "False"),
        ("/predictions/m/1.0", "m", "1.0", "", "False"),
        ("/predictions/m/1.0/v1/chat/completion", "m", "1.0", "v1/chat/completion", "False"),
        ("/predictions/a%20b%2F2", "a b", "2", "", "False"),
        ("/predictions/a+b", "a+b", None, "", "False"),
        ("/predictions/m/1/%C3%A9/%00/%0Ax", "m", "1", "%C3%A9/%00/%0Ax", "False"),
        ("/explanations/m", "m", None, "", "True"),
        ("/explanations/m/2", "m", "2", "", "True"),
        ("/explanations/m/2/x", "m", "2", "x", "True"),
    ],
)
async def test_the_path_names_model_and_version(
    running: Running, path: str, model: str, version: str | None, url_path: str, explain: str
) -> None:
    client = await running.connect()
    for _ in "12":  # the second time from memory
        await client.ask(post(path, b"x"))
        assert running.models.submitted[-1] == (model, version, None)
        assert running.models.headers[-2:] == [("url_path", url_path), ("explain", explain)]


async def test_query_parameters_stay_away_from_the_handler(running: Running) -> None:
    client = await running.connect()
    await client.ask(post("/predictions/m?a=1", b"x"))
    assert running.models.parts == [("body", "", b"x")]


async def test_query_parameters_reach_the_handler_if_asked_to(start: Start) -> None:
    running = await start(pass_query_parameters=True)
    client = await running.connect()
    for _ in "12":
        await client.ask(post("/predictions/m?a=1", b"x"))
        assert running.models.parts == [("a", "", b"1"), ("body", "", b"x")]


async def test_the_client_may_set_a_deadline(running: Running) -> None:
    client = await running.connect()
    await client.ask(post("/predictions/m", b"x", "X-Request-Timeout-Ms: 1500"))
    assert running.models.submitted == [("m", None, 1.5)]


@pytest.mark.parametrize("value", ["abc", "-1", "0", "1e3", "", "1.5"])
async def test_a_deadline_that_is_none_is_refused(running: Running, value: str) -> None:
    code, type_, _ = await error(running, post("/predictions/m", b"x", f"X-Request-Timeout-Ms: {value}"))
    assert (code, type_) == (400, "BadRequestException")
    assert not running.models.jobs


async def test_a_malformed_form_is_400(running: Running) -> None:
    request = post("/predictions/m", b"rubbish", "Content-Type: multipart/form-data; boundary=x")
    assert (await error(running, request))[:2] == (400, "BadRequestException")


@pytest.mark.parametrize(
    ("raised", "code", "type_"),
    [
        (ModelNotFound, 404, "ModelNotFoundException"),
        (VersionNotFound, 404, "ModelVersionNotFoundException"),
        (QueueFull, 503, "ServiceUnavailableException"),
        (Draining, 503, "ServiceUnavailableException"),
    ],
)
async def test_what_the_model_server_refuses_is_an_error(
    running: Running, raised: type[MarinerError], code: int, type_: str
) -> None:
    running.models.error = raised("No.")
    assert await error(running, post(body=b"x" * 70_000)) == (code, type_, "No.")
    assert running.models.metrics.statuses == [code]


async def test_a_defect_is_500_without_its_details(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.models.error = ZeroDivisionError("secret")
    client = await running.connect()
    with caplog.at_level(logging.ERROR):
        answer = await client.ask(post(body=b"x"))
    body = json.loads(answer.body)
    assert (body["code"], body["type"], body["message"]) == (500, "InternalServerException", "Internal server error.")
    assert b"secret" not in answer.body
    assert answer.headers["x-request-id"] in body["hint"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


# -- what is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/nope", "/predictions", "/predictions/", "/explanations", "//ping", "/Ping", "/a/b/c", "/models"]
)
async def test_unknown_paths_are_404(running: Running, path: str) -> None:
    assert await error(running, get(path)) == (404, "ResourceNotFoundException", NOT_FOUND)


@pytest.mark.parametrize("kind", ALL)
async def test_the_root_is_405(start: Start, kind: Listener) -> None:
    running = await start(kind)
    assert await error(running, get("/")) == (405, "MethodNotAllowedException", NOT_ALLOWED)


async def test_a_broken_escape_in_the_path_is_400(running: Running) -> None:
    assert (await error(running, get("/predictions/%zz")))[:2] == (400, "BadRequestException")


async def test_each_listener_serves_its_own_routes(start: Start) -> None:
    inference, management, metrics = [await start(kind) for kind in ALL]
    assert [await status(running, get("/ping")) for running in (inference, management, metrics)] == [200, 404, 404]
    assert [await status(running, get("/models")) for running in (inference, management, metrics)] == [404, 200, 404]
    assert [await status(running, get("/metrics")) for running in (inference, management, metrics)] == [404, 404, 200]


async def test_a_shared_listener_serves_all_routes(start: Start) -> None:
    running = await start(*ALL)
    paths = ["/ping", "/predictions/m", "/models", "/models/m/1.0", "/metrics"]
    assert [await status(running, get(path)) for path in paths] == [200] * 5
    assert running.models.calls[-1] == ("describe", "m", "1.0", False, False)


def test_routes_are_told_apart_by_listener_method_and_path() -> None:
    keys = [(route.listener, method, route.path) for route in ROUTES for method in route.methods]
    assert len(keys) == len(set(keys))
    assert all(route.summary.endswith(".") for route in ROUTES)


# -- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_are_text(start: Start) -> None:
    running = await start(Listener.METRICS)
    client = await running.connect()
    answer = await client.ask(get("/metrics/whatever", method="POST"))
    assert (answer.body, answer.headers["content-type"]) == (
        b"# HELP up up\n",
        "text/plain; version=0.0.4; charset=utf-8",
    )


async def test_metrics_may_be_picked_by_name(start: Start) -> None:
    running = await start(Listener.METRICS)
    await status(running, get("/metrics?name[]=a&name[]=b"))
    await status(running, get("/metrics"))
    assert running.models.metrics.exposed == [["a", "b"], None]


# -- access ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(
        tmp_path / "key_file.json",
        lifetime=60,
        given={type_: f"{type_.value}-0123456789abcdef" for type_ in KeyType},
        clock=lambda: 0,
    )


async def test_a_guarded_listener_wants_its_key(start: Start, keys: Keys) -> None:
    running = await start(access=Access(TokenMode.ON, keys))
    with_key = post("/predictions/m", b"x", "Authorization: Bearer inference-0123456789abcdef")
    assert await status(running, with_key) == 200
    assert (await error(running, post(body=b"x")))[:2] == (400, "InvalidKeyException")
    assert await status(running, with_key) == 200
    assert (await error(running, post(body=b"x")))[:2] == (400, "InvalidKeyException")
    assert (await error(running, get("/nope")))[:2] == (400, "InvalidKeyException")


async def test_a_shared_listener_wants_the_key_of_the_route(start: Start, keys: Keys) -> None:
    running = await start(*ALL, access=Access(TokenMode.ON, keys))
    inference, management = (
        "Authorization: Bearer inference-0123456789abcdef",
        "Authorization: Bearer management-0123456789abcdef",
    )
    assert await status(running, get("/ping", inference)) == 200
    assert await status(running, get("/ping", management)) == 400
    assert await status(running, get("/models", management)) == 200
    assert await status(running, get("/models", inference)) == 400
    assert await status(running, get("/metrics")) == 200


async def test_web_pages_of_others_may_not_manage_models(start: Start) -> None:
    running = await start(Listener.MANAGEMENT)
    assert await status(running, get("/models")) == 200
    assert await status(running, get("/models", "Origin: https://evil.example")) == 400
    rebound = b"GET /models HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert await status(running, rebound) == 400


async def test_models_cannot_be_changed_while_that_is_off(start: Start) -> None:
    running = await start(Listener.MANAGEMENT, access=Access(TokenMode.AUTO, model_api=False))
    for request in (post("/models?url=m.mar"), get("/models/m", method="DELETE"), get("/models/m/1", method="DELETE")):
        assert await error(running, request) == (405, "MethodNotAllowedException", NOT_ALLOWED)
    assert await status(running, get("/models/m?min_worker=1", method="PUT")) == 202
    assert [call[0] for call in running.models.calls] == ["scale"]


# -- CORS ------------------------------------------------------------------------------------------------------------

CORS = (
    ("Access-Control-Allow-Origin", "https://ui.example"),
    ("Access-Control-Allow-Methods", "GET, POST"),
    ("Access-Control-Allow-Headers", "Authorization"),
)


async def test_configured_cors_headers_are_on_every_answer(start: Start) -> None:
    running = await start(cors=CORS)
    client = await running.connect()
    for request in (post(body=b"x"), get("/nope"), b"NONSENSE\r\n\r\n"):
        headers = (await client.ask(request)).headers
        assert all(headers[name.lower()] == value for name, value in CORS)


@pytest.mark.parametrize("kind", ALL)
async def test_one_cors_setting_makes_one_header_on_every_listener(start: Start, kind: Listener) -> None:
    running = await start(kind, cors=CORS[:1])
    client = await running.connect()
    for request in (get("/"), get("/nope"), get("/metrics"), get("/v2/health/live")):
        headers = (await client.ask(request)).headers
        found = {name: value for name, value in headers.items() if name.startswith("access-control")}
        assert found == {"access-control-allow-origin": "https://ui.example"}


async def test_the_answer_to_a_body_that_is_too_large_has_them(start: Start) -> None:
    running = await start(cors=CORS, limits=Limits(max_request_size=10))
    client = await running.connect()
    answer = await client.ask(post(body=b"x" * 11))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (413, "https://ui.example")


@pytest.mark.parametrize("more", [False, True])
async def test_a_cors_header_of_the_handler_stays(start: Start, more: bool) -> None:
    def behaviour(job: Job) -> None:
        headers = pack_headers([("access-control-ALLOW-origin", "https://own.example")])
        reply = Reply(1, b"x", headers=headers)
        if more:
            job.piece(reply._replace(more=True))
        job.end(reply)

    running = await start(cors=CORS)
    running.models.behaviour = behaviour
    client = await running.connect()
    answer = await client.ask(post(body=b"x"))
    assert answer.headers["access-control-allow-origin"] == "https://own.example"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"


async def test_without_settings_there_are_no_cors_headers(running: Running) -> None:
    client = await running.connect()
    answer = await client.ask(post("/predictions/m", b"x", "Origin: https://ui.example"))
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_preflight_is_answered_without_a_key(start: Start, keys: Keys) -> None:
    running = await start(cors=CORS, access=Access(TokenMode.ON, keys))
    client = await running.connect()
    request = get(
        "/predictions/m", "Origin: https://ui.example", "Access-Control-Request-Method: POST", method="OPTIONS"
    )
    answer = await client.ask(request)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://ui.example")
    assert not running.models.jobs


async def test_there_is_no_preflight_without_cors(start: Start, keys: Keys) -> None:
    running = await start(access=Access(TokenMode.ON, keys))
    request = get(
        "/predictions/m", "Origin: https://ui.example", "Access-Control-Request-Method: POST", method="OPTIONS"
    )
    assert await status(running, request) == 400


async def test_a_cors_setting_that_cannot_be_sent_is_refused(start: Start) -> None:
    with pytest.raises(ConfigurationError, match="CORS"):
        await start(cors=(("Access-Control-Allow-Origin", "a\r\nSet-Cookie: b"),))


# -- the table -------------------------------------------------------------------------------------------------------


async def test_made_up_targets_do_not_fill_the_memory(start: Start) -> None:
    running = await start()
    client = await running.connect()
    for number in range(1100):
        await client.ask(post(f"/predictions/m{number}", b"x"))
    assert running.models.submitted[-1][0] == "m1099"
    assert len(running.listener._app._known) < 1100


async def test_a_call_goes_on_when_its_client_leaves(start: Start) -> None:
    running = await start(Listener.MANAGEMENT)
    models: FakeModelServer = running.models
    models.gate = asyncio.Event()
    client = await running.connect()
    await client.send(post("/models?url=m.mar"))
    await models.arrived.wait()
    await client.close()
    await until(lambda: len(running.connections) == 0)
    (task,) = running.listener._app._tasks
    assert task.get_name().startswith("POST /models ")
    models.gate.set()
    await running.listener.close()
    assert task.done()
    assert task.exception() is None


@pytest.mark.parametrize(
    ("path", "alone"),
    [
        ("/predictions/m", False),
        ("/explanations/m", True),
        ("/v1/models/m:predict", False),
        ("/v1/models/m:explain", True),
        ("/v2/models/m/explain", True),
    ],
)
async def test_an_explanation_shares_its_batch_with_no_prediction(running: Running, path: str, alone: bool) -> None:
    client = await running.connect()
    await client.ask(post(path, b"{}"))
    (job,) = running.models.jobs
    assert job.alone is alone
