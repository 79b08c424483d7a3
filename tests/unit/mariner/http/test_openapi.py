"""The API described by itself: the documents, who may read them, and the page."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
from conftest import Running, Start
from http_peer import Answer, get, post
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator

from mariner.auth import Access, Keys, KeyType, Listener
from mariner.config import TokenMode
from mariner.http.openapi.operations import ERRORS
from mariner.http.openapi.schemas import SCHEMAS
from mariner.http.openapi.table import OPERATIONS
from mariner.http.routes import ROUTES
from mariner.registry import ModelVersion, Registry
from mariner.settings import VERSION

ALL = tuple(Listener)
SETS = [(Listener.INFERENCE,), (Listener.MANAGEMENT,), (Listener.METRICS,), ALL]
MANAGEMENT_KEY = "management-0123456789abcdef"


async def ask(running: Running, path: str, *headers: str, method: str = "GET") -> Answer:
    client = await running.connect()
    return await client.ask(get(path, *headers, method=method))


async def read(running: Running, path: str, *, method: str = "GET") -> dict[str, Any]:
    answer = await ask(running, path, method=method)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    document: dict[str, Any] = json.loads(answer.body)
    return document


def operation_ids(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        path: {method: operation["operationId"] for method, operation in methods.items()}
        for path, methods in document["paths"].items()
    }


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "key_file.json", given={KeyType.MANAGEMENT: MANAGEMENT_KEY})


@pytest.fixture
def with_model(start: Start) -> Start:
    """Listeners of a server that has version 1.0 of the model m."""

    async def begin(*kinds: Listener, **settings: Any) -> Running:
        running = await start(*kinds, **settings)
        registry = Registry()
        registry.add(cast("ModelVersion", SimpleNamespace(name="m", version="1.0")))
        running.models.registry = registry  # type: ignore[attr-defined]
        return running

    return begin


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_route_is_described() -> None:
    missing = [
        (route.listener, method, route.path)
        for route in ROUTES
        if not route.path.endswith("{rest*}")  # another route with something behind it that nobody reads
        for method in route.methods
        if not (described := OPERATIONS[route.listener].get(route.path))
        or (method != "*" and method.lower() not in described)
    ]
    assert missing == []


def test_nothing_is_described_that_is_not_there() -> None:
    methods = {(route.listener, route.path, method.lower()) for route in ROUTES for method in route.methods}
    described = [
        (listener, path, one) for listener, table in OPERATIONS.items() for path in table for one in table[path]
    ]
    assert [one for one in described if one not in methods and (*one[:2], "*") not in methods] == []


def test_every_example_of_an_error_is_used() -> None:
    operations = [one for table in OPERATIONS.values() for methods in table.values() for one in methods.values()]
    used = {name for operation in operations for name in operation.errors}
    assert used | {"Defect"} == set(ERRORS)


# -- documents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", SETS, ids=str)
async def test_documents_are_valid(start: Start, kinds: tuple[Listener, ...]) -> None:
    running = await start(*kinds)
    old, new = await read(running, "/", method="OPTIONS"), await read(running, "/openapi.json")
    assert (old["openapi"], new["openapi"]) == ("3.0.1", "3.1.0")
    OpenAPIV30SpecValidator(old).validate()
    OpenAPIV31SpecValidator(new).validate()
    assert old["info"]["version"] == new["info"]["version"] == VERSION


@pytest.mark.parametrize("kinds", SETS, ids=str)
async def test_examples_have_the_shape_they_are_examples_of(start: Start, kinds: tuple[Listener, ...]) -> None:
    document = await read(await start(*kinds), "/openapi.json")
    examples = list(examples_of(document))
    assert examples
    for schema, example in examples:
        jsonschema.validate(example, {**schema, "components": document["components"]})


def examples_of(part: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    if isinstance(part, dict):
        if "schema" in part and "example" in part:
            yield part["schema"], part["example"]
        if "schema" in part and "examples" in part:
            yield from ((part["schema"], example["value"]) for example in part["examples"].values())
        for inner in part.values():
            yield from examples_of(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from examples_of(inner)


async def test_torchserves_inference_operations_keep_their_names(running: Running) -> None:
    document = await read(running, "/", method="OPTIONS")
    assert document["info"]["title"] == "TorchServe APIs"
    ids = operation_ids(document)
    assert ids["/"] == {"options": "apiDescription"}
    assert ids["/ping"] == {"get": "ping"}
    assert ids["/predictions/{model_name}"] == {"post": "predictions"}
    assert ids["/predictions/{model_name}/{model_version}"] == {"post": "version_predictions"}
    assert ids["/api-description"] == {"get": "api-description"}
    assert ids["/metrics"] == {"get": "metrics"}
    assert document["paths"]["/api-description"]["get"]["deprecated"] is True


async def test_torchserves_management_operations_keep_their_names(start: Start) -> None:
    ids = operation_ids(await read(await start(Listener.MANAGEMENT), "/", method="OPTIONS"))
    assert ids["/models"] == {"get": "listModels", "post": "registerModel"}
    assert ids["/models/{model_name}"] == {
        "get": "describeModel",
        "put": "setAutoScale",
        "delete": "unregisterModel",
    }
    assert ids["/models/{model_name}/{model_version}"] == {
        "get": "version_describeModel",
        "put": "version_setAutoScale",
        "delete": "version_unregisterModel",
    }
    assert ids["/models/{model_name}/{model_version}/set-default"] == {"put": "setDefault"}
    assert ids["/metrics"] == {"get": "metrics"}


async def test_torchserves_document_of_the_metrics_listener_has_one_path(start: Start) -> None:
    assert operation_ids(await read(await start(Listener.METRICS), "/", method="OPTIONS")) == {
        "/metrics": {"get": "metrics"}
    }


@pytest.mark.parametrize("kind", ALL)
async def test_api_description_is_the_same_document_for_any_method(start: Start, kind: Listener) -> None:
    running = await start(kind)
    expected = (await ask(running, "/", method="OPTIONS")).body
    for method in ("GET", "POST", "OPTIONS"):
        for path in ("/api-description", "/api-description/"):
            assert (await ask(running, path, method=method)).body == expected
    assert (await ask(running, "*", method="OPTIONS")).body == expected


async def test_the_modern_document_promises_only_what_this_listener_serves(running: Running) -> None:
    paths = (await read(running, "/openapi.json"))["paths"]
    assert "/metrics" not in paths
    assert "/models" not in paths
    assert {"/predictions/{model_name}", "/docs", "/openapi.json"} <= paths.keys()


async def test_a_shared_listener_describes_all_it_serves(start: Start) -> None:
    paths = (await read(await start(*ALL), "/openapi.json"))["paths"]
    assert {"/predictions/{model_name}", "/models", "/metrics"} <= paths.keys()


async def test_errors_are_described_by_status_with_examples(start: Start) -> None:
    document = await read(await start(Listener.MANAGEMENT), "/openapi.json")
    responses = document["paths"]["/models"]["post"]["responses"]
    assert sorted(responses) == ["200", "202", "206", "400", "404", "405", "409", "413", "500", "503", "507", "default"]
    name = responses["409"]["$ref"].removeprefix("#/components/responses/")
    (example,) = document["components"]["responses"][name]["content"]["application/json"]["examples"].values()
    assert example["value"]["type"] == "ConflictStatusException"


async def test_an_error_has_the_shape_that_is_documented(running: Running) -> None:
    error = json.loads((await ask(running, "/nope")).body)
    jsonschema.validate(error, {**SCHEMAS["Error"], "additionalProperties": False})


# -- keys --------------------------------------------------------------------------------------------------------------

PUBLIC = [("OPTIONS", "/"), ("GET", "/api-description"), ("GET", "/openapi.json"), ("GET", "/docs")]


@pytest.mark.parametrize(("method", "path"), PUBLIC)
async def test_what_there_is_to_call_is_no_secret(start: Start, keys: Keys, method: str, path: str) -> None:
    for kind in (Listener.INFERENCE, Listener.MANAGEMENT):
        running = await start(kind, access=Access(TokenMode.ON, keys))
        assert (await ask(running, path, method=method)).status == 200
        assert (await ask(running, "/nope")).status == 400


async def test_a_key_is_asked_for_where_one_is_needed(start: Start, keys: Keys) -> None:
    document = await read(await start(*ALL, access=Access(TokenMode.ON, keys)), "/openapi.json")
    schemes = document["components"]["securitySchemes"]
    assert {name: (one["type"], one["scheme"]) for name, one in schemes.items()} == {
        "inferenceKey": ("http", "bearer"),
        "managementKey": ("http", "bearer"),
    }
    assert document["paths"]["/ping"]["get"]["security"] == [{"inferenceKey": []}]
    assert document["paths"]["/models"]["get"]["security"] == [{"managementKey": []}]
    assert "security" not in document["paths"]["/metrics"]["get"]
    assert "security" not in document["paths"]["/openapi.json"]["get"]


async def test_a_key_that_only_other_machines_need_is_optional(start: Start, keys: Keys) -> None:
    document = await read(await start(*ALL, access=Access(TokenMode.AUTO, keys)), "/openapi.json")
    assert document["paths"]["/models"]["get"]["security"] == [{}, {"managementKey": []}]
    assert "security" not in document["paths"]["/ping"]["get"]


async def test_no_key_is_mentioned_where_there_is_none(start: Start) -> None:
    for mode in (TokenMode.AUTO, TokenMode.OFF):
        answer = await ask(await start(*ALL, access=Access(mode)), "/openapi.json")
        assert b"security" not in answer.body


async def test_the_description_of_a_model_needs_the_key(with_model: Start, keys: Keys) -> None:
    running = await with_model(Listener.MANAGEMENT, access=Access(TokenMode.ON, keys))
    assert (await ask(running, "/models/m", method="OPTIONS")).status == 400
    key = f"Authorization: Bearer {MANAGEMENT_KEY}"
    assert (await ask(running, "/models/m", key, method="OPTIONS")).status == 200


# -- one model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predictions/m", "/predictions/m/1.0", "/explanations/m", "/predictions/m/1.0/a/b"])
async def test_options_describes_the_calls_of_a_model(with_model: Start, path: str) -> None:
    running = await with_model()
    document = await read(running, path, method="OPTIONS")
    OpenAPIV30SpecValidator(document).validate()
    assert document["info"] == {**document["info"], "title": "RESTful API for: m", "version": "1.0.0"}
    assert operation_ids(document)["/predictions/m"] == {"post": "m"}
    assert all(re.search(r"/m\b", name) for name in document["paths"])
    assert not running.models.jobs, "the handler has seen it"


@pytest.mark.parametrize("path", ["/models/m", "/models/m/1.0", "/models/m/all", "/models/m/1.0/set-default"])
async def test_options_describes_the_management_of_a_model(with_model: Start, path: str) -> None:
    document = await read(await with_model(Listener.MANAGEMENT), path, method="OPTIONS")
    OpenAPIV30SpecValidator(document).validate()
    assert document["info"]["title"] == "RESTful Management API for: m"
    assert list(document["paths"]) == [
        "/models/m",
        "/models/m/deaths",
        "/models/m/traffic",
        "/models/m/{model_version}",
        "/models/m/{model_version}/deaths",
        "/models/m/{model_version}/set-default",
        "/models/m/{model_version}/reload",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/predictions/nope", "Model not found: nope"),
        ("/explanations/nope", "Model not found: nope"),
        ("/predictions/m/2.0", "Model version: 2.0 does not exist for model: m"),
        ("/models/nope", "Model not found: nope"),
        ("/models/m/2.0", "Model version: 2.0 does not exist for model: m"),
    ],
)
async def test_options_on_an_unknown_model_is_404(with_model: Start, path: str, message: str) -> None:
    answer = await ask(await with_model(*ALL), path, method="OPTIONS")
    assert (answer.status, json.loads(answer.body)["message"]) == (404, message)


async def test_names_of_models_are_escaped_in_paths(with_model: Start) -> None:
    running = await with_model()
    odd = cast("ModelVersion", SimpleNamespace(name="a {b}%", version="1"))
    running.models.registry.add(odd)  # type: ignore[attr-defined]
    document = await read(running, "/predictions/a%20%7Bb%7D%25", method="OPTIONS")
    OpenAPIV30SpecValidator(document).validate()
    assert document["info"]["title"] == "RESTful API for: a {b}%"
    assert "/predictions/a%20%7Bb%7D%25" in document["paths"]


async def test_options_on_a_route_without_a_model_is_as_before(start: Start) -> None:
    running = await start(*ALL)
    answer = await ask(running, "/models", method="OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
    assert json.loads((await ask(running, "/ping", method="OPTIONS")).body) == {"status": "Healthy"}


async def test_a_preflight_is_answered_before_the_description(with_model: Start) -> None:
    cors = (("Access-Control-Allow-Origin", "https://ui.example"),)
    running = await with_model(cors=cors)
    asking = ("Origin: https://ui.example", "Access-Control-Request-Method: POST")
    for path in ("/", "/predictions/m", "/predictions/nope"):
        answer = await ask(running, path, *asking, method="OPTIONS")
        assert (answer.status, answer.body) == (200, b"")
    assert (await ask(running, "/predictions/m", method="OPTIONS")).body


async def test_a_prediction_that_was_made_before_does_not_hide_the_description(with_model: Start) -> None:
    running = await with_model()
    client = await running.connect()
    await client.ask(post("/predictions/m", b"x"))
    document = json.loads((await client.ask(get("/predictions/m", method="OPTIONS"))).body)
    assert document["info"]["title"] == "RESTful API for: m"
    assert len(running.models.jobs) == 1


# -- the page ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What of a page its Content-Security-Policy is about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in self.contents and attrs:
            raise AssertionError(f"<{tag}> has attributes, so the policy does not let it in")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.contents:
            self.contents[self._inside].append(data)


@pytest.mark.parametrize("kinds", [(Listener.INFERENCE,), (Listener.MANAGEMENT,), ALL], ids=str)
async def test_there_is_a_page_for_people(start: Start, kinds: tuple[Listener, ...]) -> None:
    answer = await ask(await start(*kinds), "/docs")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!doctype html>")


async def test_the_policy_lets_in_the_pages_own_script_and_style_and_nothing_else(running: Running) -> None:
    answer = await ask(running, "/docs")
    page = Page(answer.body.decode())
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    for tag, contents in page.contents.items():
        (content,) = contents
        digest = b64encode(sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]


async def test_the_page_needs_nothing_from_elsewhere(running: Running) -> None:
    html = (await ask(running, "/docs")).body.decode()
    assert set(re.findall(r"https?://[^\s'\"]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not fetched
    assert len(html) < 32_000


async def test_scrapers_get_no_page(start: Start) -> None:
    assert (await ask(await start(Listener.METRICS), "/docs")).status == 404


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_what_is_only_read_refuses_other_methods(running: Running, path: str) -> None:
    client = await running.connect()
    head = await client.ask(get(path, method="HEAD"), head_only=True)
    assert (head.status, head.body) == (200, b"")
    answer = await ask(running, path, method="POST")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(answer.body)["type"] == "MethodNotAllowedException"
