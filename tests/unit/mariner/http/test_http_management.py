"""Management calls: parameters and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Running, Start
from http_peer import Answer, get, post

from mariner.auth import Access, Keys, KeyType, Listener
from mariner.config import TokenMode
from mariner.errors import Conflict, DefaultVersionInUse, VersionNotFound, WorkerStartFailed
from mariner.model_server import Registered
from mariner.model_settings import RegisterOptions


@pytest.fixture
async def running(start: Start) -> Running:
    return await start(Listener.MANAGEMENT)


async def ask(running: Running, request: bytes) -> tuple[int, Any]:
    client = await running.connect()
    answer: Answer = await client.ask(request)
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)


def put(path: str) -> bytes:
    return get(path, method="PUT")


def delete(path: str) -> bytes:
    return get(path, method="DELETE")


# -- list ------------------------------------------------------------------------------------------------------------


async def test_models_are_listed(running: Running) -> None:
    running.models.models = [("a", "a.mar"), ("b", "b.mar")]
    models = [{"modelName": "a", "modelUrl": "a.mar"}, {"modelName": "b", "modelUrl": "b.mar"}]
    assert await ask(running, get("/models/")) == (200, {"models": models})


@pytest.mark.parametrize(
    ("query", "names", "token"),
    [
        ("limit=1", ["m000"], "1"),
        ("limit=1&next_page_token=1", ["m001"], "2"),
        ("limit=1&next_page_token=149", ["m149"], None),
        ("next_page_token=100", [f"m{n}" for n in range(100, 150)], None),
        ("next_page_token=1000", [], None),
        ("limit=0", [], None),
        ("limit=2&next_page_token=-1", ["m000", "m001"], "2"),
        ("limit=-1", [f"m{n:03}" for n in range(100)], "100"),
        ("limit=101", [f"m{n:03}" for n in range(100)], "100"),
        ("limit=abc", [f"m{n:03}" for n in range(100)], "100"),
        ("", [f"m{n:03}" for n in range(100)], "100"),
    ],
)
async def test_models_are_listed_page_by_page(
    running: Running, query: str, names: list[str], token: str | None
) -> None:
    running.models.models = [(f"m{n:03}", "u") for n in range(150)]
    _, body = await ask(running, get(f"/models?{query}"))
    assert [model["modelName"] for model in body["models"]] == names
    assert body.get("nextPageToken") == token


# -- register --------------------------------------------------------------------------------------------------------


async def test_register_takes_its_parameters_from_the_query(running: Running) -> None:
    query = (
        "url=m.mar&model_name=n&handler=h:f&runtime=python3&batch_size=4&max_batch_delay=250&initial_workers=2"
        "&synchronous=FALSE&response_timeout=7&startup_timeout=8&unknown=1&s3_sse_kms=true"
    )
    await ask(running, post(f"/models?{query}"))
    options = RegisterOptions("n", "h:f", "python3", 4, 0.25, 2, 7, 8, s3_sse_kms=True)
    assert running.models.calls == [("register", "m.mar", options, False)]


async def test_register_takes_its_parameters_from_json(running: Running) -> None:
    body = b'{"url": "m.mar", "batch_size": "4", "initial_workers": 1, "synchronous": "true"}'
    await ask(running, post("/models?url=other&model_name=n", body, "Content-Type: application/json"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(batch_size=4, initial_workers=1), True)]


async def test_register_takes_its_parameters_from_a_form(running: Running) -> None:
    await ask(running, post("/models", b"url=m.mar&batch_size=2", "Content-Type: application/x-www-form-urlencoded"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(batch_size=2), True)]


async def test_register_may_be_told_the_hash_of_the_archive(running: Running) -> None:
    await ask(running, post("/models?url=m.mar&sha256=ab12"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(sha256="ab12"), True)]


async def test_what_register_is_not_told_stays_open(running: Running) -> None:
    await ask(running, post("/models?url=m.mar"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(), True)]


async def test_numbers_that_are_none_or_mean_unset_stay_open(running: Running) -> None:
    query = "batch_size=x&max_batch_delay=-100&response_timeout=-1&startup_timeout=&initial_workers=two"
    await ask(running, post(f"/models?url=m.mar&{query}"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(), True)]


async def test_a_negative_number_of_workers_is_none(running: Running) -> None:
    await ask(running, post("/models?url=m.mar&initial_workers=-1"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(initial_workers=0), True)]


@pytest.mark.parametrize(
    ("query", "code", "type_", "message"),
    [
        ("", 400, "BadRequestException", "Parameter url is required."),
        ("url=", 404, "ModelNotFoundException", "empty url"),
        ("url=m.mar&runtime=PYTHON", 400, "BadRequestException", "Invalid RuntimeType value: PYTHON"),
        ("url=m.mar&model_name=a/b", 400, "BadRequestException", "'a/b' cannot be a model_name."),
        ("url=m.mar&model_name=a%0Ab", 400, "BadRequestException", "'a\\nb' cannot be a model_name."),
        ("url=m.mar&model_name=..", 400, "BadRequestException", "'..' cannot be a model_name."),
        ("url=m.mar&batch_size=0", 400, "BadRequestException", "batch_size must be at least 1, not 0."),
        ("url=m.mar&max_batch_delay=-5", 400, "BadRequestException", "max_batch_delay must be at least 0, not -5."),
    ],
)
async def test_bad_parameters_of_register_are_refused(
    running: Running, query: str, code: int, type_: str, message: str
) -> None:
    status, body = await ask(running, post(f"/models?{query}"))
    assert (status, body["code"], body["type"], body["message"]) == (code, code, type_, message)
    assert not running.models.calls


@pytest.mark.parametrize(
    ("registered", "synchronous", "code", "text"),
    [
        (
            Registered("m", "1.0", 0, ready=True),
            "true",
            200,
            (
                'Model "m" Version: 1.0 registered with 0 initial workers. '
                "Use scale workers API to add workers for the model."
            ),
        ),
        (
            Registered("m", "1.0", 0, ready=True, on_demand=True),
            "true",
            200,
            'Model "m" Version: 1.0 registered with 0 initial workers. The first request starts one.',
        ),
        (Registered("m", "2", 3, ready=True), "true", 200, 'Model "m" Version: 2 registered with 3 initial workers'),
        (Registered("m", "2", 3, ready=False), "false", 202, "Processing worker updates..."),
        (Registered("m", "2", 3, ready=False), "true", 206, "Workers scaling in progress..."),
    ],
)
async def test_register_says_what_it_did(
    running: Running, registered: Registered, synchronous: str, code: int, text: str
) -> None:
    running.models.registered = registered
    answer = await ask(running, post(f"/models?url=m.mar&synchronous={synchronous}"))
    assert answer == (code, {"status": text})


@pytest.mark.parametrize(
    ("error", "code", "type_"),
    [
        (Conflict("Model version 1.0 is already registered for model m"), 409, "ConflictStatusException"),
        (WorkerStartFailed("Failed to start workers"), 500, "InternalServerException"),
        (WorkerStartFailed("Failed to start workers", out_of_memory=True), 507, "InternalServerException"),
    ],
)
async def test_register_says_what_went_wrong(running: Running, error: Exception, code: int, type_: str) -> None:
    running.models.error = error
    status, body = await ask(running, post("/models?url=m.mar"))
    assert (status, body["type"], body["message"]) == (code, type_, str(error))


async def test_a_large_body_of_parameters_is_read_from_shared_memory(running: Running) -> None:
    body = json.dumps({"url": "m.mar", "padding": "x" * 100_000}).encode()
    await ask(running, post("/models", body, "Content-Type: application/json"))
    assert running.models.calls == [("register", "m.mar", RegisterOptions(), True)]


# -- describe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/models/m", ("describe", "m", None, False, False)),
        ("/models/m/2.0", ("describe", "m", "2.0", False, False)),
        ("/models/m/all", ("describe", "m", None, True, False)),
        ("/models/m?customized=TRUE", ("describe", "m", None, False, True)),
        ("/models/m/2.0?customized=yes", ("describe", "m", "2.0", False, False)),
        ("/models/m/all?customized=true", ("describe", "m", None, True, False)),
    ],
)
async def test_models_are_described(running: Running, path: str, call: tuple[Any, ...]) -> None:
    assert await ask(running, get(path)) == (200, [{"modelName": "m", "modelVersion": call[2] or "1.0"}])
    assert running.models.calls == [call]


async def test_a_description_says_where_settings_come_from_if_asked(running: Running) -> None:
    _, (description,) = await ask(running, get("/models/m/2.0?settings=true"))
    assert description["settings"] == {"batchSize": {"value": "4", "from": "API"}}
    assert running.models.calls == [("describe", "m", "2.0", False, False), ("explain", "m", "2.0")]


# -- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/models/m", ("scale", "m", None, 1, 1, False)),
        ("/models/m?min_worker=3", ("scale", "m", None, 3, 3, False)),
        ("/models/m/2?min_worker=0&max_worker=4&number_gpu=1&timeout=5", ("scale", "m", "2", 0, 4, False)),
        ("/models/m?min_worker=x&synchronous=true", ("scale", "m", None, 1, 1, True)),
        ("/models/m?model_version=7", ("scale", "m", "7", 1, 1, False)),
    ],
)
async def test_workers_are_scaled(running: Running, path: str, call: tuple[Any, ...]) -> None:
    await ask(running, put(path))
    assert running.models.calls == [call]


@pytest.mark.parametrize(
    ("path", "scaled", "code", "text"),
    [
        ("/models/m?min_worker=2", False, 202, "Processing worker updates..."),
        ("/models/m?min_worker=2&synchronous=true", True, 200, "Workers scaled to 2 for model: m"),
        ("/models/m/1.0?min_worker=2&synchronous=true", True, 200, "Workers scaled to 2 for model: m, version: 1.0"),
        ("/models/m?min_worker=2&synchronous=true", False, 206, "Workers scaling in progress..."),
    ],
)
async def test_scale_says_what_it_did(running: Running, path: str, scaled: bool, code: int, text: str) -> None:
    running.models.scaled = scaled
    assert await ask(running, put(path)) == (code, {"status": text})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("min_worker=2&max_worker=1", "max_worker cannot be less than min_worker."),
        ("max_worker=0", "max_worker cannot be less than min_worker."),
        ("min_worker=-1", "min_worker cannot be negative."),
    ],
)
async def test_impossible_numbers_of_workers_are_refused(running: Running, query: str, message: str) -> None:
    status, body = await ask(running, put(f"/models/m?{query}"))
    assert (status, body["type"], body["message"]) == (400, "BadRequestException", message)
    assert not running.models.calls


# -- default and unregister ------------------------------------------------------------------------------------------


async def test_the_default_version_is_set(running: Running) -> None:
    text = 'Default version successfully updated for model "m" to "2.0"'
    assert await ask(running, put("/models/m/2.0/set-default")) == (200, {"status": text})
    assert running.models.calls == [("set_default", "m", "2.0")]


async def test_an_unknown_version_does_not_become_the_default(running: Running) -> None:
    running.models.error = VersionNotFound("Model version 9 does not exist for model m")
    status, body = await ask(running, put("/models/m/9/set-default"))
    assert (status, body["type"]) == (404, "ModelVersionNotFoundException")


@pytest.mark.parametrize(("path", "version"), [("/models/m", None), ("/models/m/2?synchronous=true&timeout=3", "2")])
async def test_models_are_unregistered(running: Running, path: str, version: str | None) -> None:
    assert await ask(running, delete(path)) == (200, {"status": 'Model "m" unregistered'})
    assert running.models.calls == [("unregister", "m", version)]


async def test_the_default_version_is_not_unregistered(running: Running) -> None:
    running.models.error = DefaultVersionInUse("Cannot remove default version for model m")
    status, body = await ask(running, delete("/models/m/1"))
    assert (status, body["type"]) == (403, "InvalidModelVersionException")


# -- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/models", "GET, POST"),
        ("PATCH", "/models", "GET, POST"),
        ("POST", "/models/m", "DELETE, GET, PUT"),
        ("PATCH", "/models/m/1", "DELETE, GET, PUT"),
        ("GET", "/models/m/1/set-default", "PUT"),
        ("DELETE", "/models/m/1/set-default", "PUT"),
    ],
)
async def test_other_methods_are_405(running: Running, method: str, path: str, allowed: str) -> None:
    client = await running.connect()
    answer = await client.ask(get(path, method=method))
    body = json.loads(answer.body)
    assert (answer.status, body["type"]) == (405, "MethodNotAllowedException")
    assert body["message"] == "Requested method is not allowed, please refer to API document."
    assert answer.headers["allow"] == allowed
    assert not running.models.calls


@pytest.mark.parametrize("path", ["/models/m/1/other", "/models/m/1/set-default/x", "/models//1"])
async def test_longer_paths_are_404(running: Running, path: str) -> None:
    assert (await ask(running, put(path)))[0] == 404


# -- keys ------------------------------------------------------------------------------------------------------------


class Keyring:
    """Three keys that the tests know, and the listener they guard."""

    def __init__(self, path: Path, start: Start) -> None:
        given = {type_: f"{type_.value}-0123456789abcdef" for type_ in KeyType}
        self.keys = Keys(path, lifetime=60, given=given, clock=lambda: 0)
        self._start = start

    async def serve(self, *kinds: Listener, mode: TokenMode = TokenMode.ON) -> Running:
        return await self._start(*kinds, access=Access(mode, self.keys))

    def opens(self) -> list[str]:
        return [type_.value for type_ in KeyType if self.keys.opens(type_, f"{type_.value}-0123456789abcdef")]


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}-0123456789abcdef"


@pytest.fixture
def keyring(start: Start, tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "key_file.json", start)


@pytest.mark.parametrize("kinds", [(Listener.MANAGEMENT,), (Listener.INFERENCE, Listener.MANAGEMENT)])
@pytest.mark.parametrize("mode", [TokenMode.ON, TokenMode.AUTO])
@pytest.mark.parametrize(
    ("method", "type_", "rest"),
    [("GET", "inference", ["management", "API"]), ("POST", "management", ["inference", "API"])],
)
async def test_the_api_key_renews_one_of_the_others(
    keyring: Keyring, kinds: tuple[Listener, ...], mode: TokenMode, method: str, type_: str, rest: list[str]
) -> None:
    running = await keyring.serve(*kinds, mode=mode)
    client = await running.connect()
    answer = await client.ask(get(f"/token?type={type_}", bearer("API"), method=method))
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b"\n")
    assert keyring.opens() == rest


@pytest.mark.parametrize("mode", [TokenMode.ON, TokenMode.AUTO])
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", [bearer("API")]),
        ("?type=foo", [bearer("API")]),
        ("?type=MANAGEMENT", [bearer("API")]),
        ("?type=API", [bearer("API")]),
        ("?type=inference", []),
        ("?type=inference", [bearer("management")]),
        ("?type=management", [bearer("inference")]),
    ],
)
async def test_other_calls_renew_nothing(keyring: Keyring, mode: TokenMode, query: str, headers: list[str]) -> None:
    running = await keyring.serve(Listener.MANAGEMENT, mode=mode)
    status, body = await ask(running, get(f"/token{query}", *headers))
    assert (status, body["type"]) == (400, "InvalidKeyException")
    assert body["message"] == (
        "Token Authentication failed. Token either incorrect, expired, or not provided correctly"
    )
    assert keyring.opens() == [type_.value for type_ in KeyType]


async def test_names_that_resemble_the_path_are_models(keyring: Keyring) -> None:
    running = await keyring.serve(Listener.MANAGEMENT)
    assert (await ask(running, get("/models/tokenizer", bearer("management"))))[0] == 200
    assert (await ask(running, get("/models/token/token", bearer("management"))))[0] == 200
    assert [call[:3] for call in running.models.calls] == [
        ("describe", "tokenizer", None),
        ("describe", "token", "token"),
    ]


@pytest.mark.parametrize("mode", [TokenMode.AUTO, TokenMode.OFF])
async def test_without_keys_there_is_no_such_path(start: Start, mode: TokenMode) -> None:
    running = await start(Listener.MANAGEMENT, access=Access(mode))
    status, body = await ask(running, get("/token?type=management"))
    assert (status, body["type"]) == (404, "ResourceNotFoundException")


async def test_keys_are_renewed_on_the_management_listener_alone(keyring: Keyring) -> None:
    running = await keyring.serve(Listener.INFERENCE)
    request = "/token?type=inference"
    assert (await ask(running, get(request, bearer("API"))))[0] == 400
    assert (await ask(running, get(request, bearer("inference"))))[0] == 404
    assert keyring.opens() == [type_.value for type_ in KeyType]
