"""Made-up requests against a real server: every answer is one that its API description promises.

The description decides what is sent: values that fit it, and values that do not. ``MARINER_FUZZ_EXAMPLES`` says how
many of each for every operation (``make fuzz`` asks for many, different ones each time; otherwise they are few and the
same each time).
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from test_serving import put_model

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("MARINER_FUZZ_EXAMPLES", "10"))

ECHO = "def handle(data, context):\n    return data and [row.get('body', '') for row in data]\n"
FIELDS = "def handle(data, context):\n    return data and [{k: str(v) for k, v in row.items()} for row in data]\n"
MODELS = {"echo": ECHO, "fields": FIELDS}

OF_HANDLER = [not_a_server_error, checks.status_code_conformance, checks.response_headers_conformance]
OF_SERVER = [*OF_HANDLER, checks.content_type_conformance, checks.response_schema_conformance]

WORKER_COUNTS = ("initial_workers", "min_worker", "max_worker")  # a made-up one could start a thousand processes
HANDLER = "handler"  # another handler would fail to load, which is not the API's matter


class ServerThread(threading.Thread):
    """A server with an event loop of its own, so that blocking clients may be used here."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(name="server")
        self.ready = threading.Event()
        self.server: Server | None = None
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with running_server(**self._settings) as server:
                await server.models.wait_until_ready()
                self.server = server
                self.ready.set()
                await self._end.wait()
        finally:
            self.ready.set()

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    for name, handler in MODELS.items():
        put_model(store, name, handler)
    thread = ServerThread(model_store=store, load_models=tuple(MODELS), temp_dir=tmp_path_factory.mktemp("temp"))
    thread.start()
    thread.ready.wait()
    assert thread.server is not None
    yield thread.server
    thread.stop()


@pytest.fixture
def restore_models(server: Server) -> Callable[[], None]:
    """Undoes what made-up calls have registered, unregistered and scaled."""
    url = f"http://127.0.0.1:{server.address(Listener.MANAGEMENT).port}/models"

    def call(method: str, path: str) -> Any:
        answer = requests.request(method, url + path, timeout=60)
        assert answer.status_code == 200, (method, path, answer.text)
        return answer.json()

    def restore() -> None:
        known = {model["modelName"] for model in call("GET", "")["models"]}
        for name in known - MODELS.keys():
            call("DELETE", f"/{quote(name, safe='')}")
        for name in MODELS.keys() - known:
            call("POST", f"?url={name}&model_name={name}&initial_workers=1")
        for name in MODELS.keys() & known:
            call("PUT", f"/{name}?min_worker=1&synchronous=true")

    return restore


def tame(case: Any, model: str | None, version: str | None) -> None:
    """Mostly asks for models that are there, and never for many processes."""
    path = case.path_parameters or {}
    if model is not None and "model_name" in path:
        path["model_name"] = model
    if version is not None and "model_version" in path:
        path["model_version"] = version
    for values in (case.query, case.body):
        if isinstance(values, dict):
            values.pop(HANDLER, None)
            if model is not None and "url" in values:
                values["url"] = model
            for name in WORKER_COUNTS:
                if re.fullmatch(r"[+-]?\d+", str(values.get(name))):
                    values[name] = 1 + int(values[name]) % 2


def ask_many(operation: Any, mode: Any, restore_models: Callable[[], None]) -> int:
    """Makes requests up and checks their answers; returns how many there were."""
    answers = operation.definition.raw["responses"]["200"]["content"]
    registers = operation.label == "POST /models"
    sent = 0

    @settings(
        max_examples=EXAMPLES,
        derandomize="MARINER_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(mode),
        model=st.sampled_from([*MODELS, None]),
        version=st.sampled_from(["1.0", None]),
    )
    def ask(case: Any, model: str | None, version: str | None) -> None:
        nonlocal sent
        tame(case, model, version)
        answer = case.call(timeout=60)
        sent += 1
        by_handler = "*/*" in answers and answer.status_code == 200
        case.validate_response(answer, checks=OF_HANDLER if by_handler else OF_SERVER)
        if registers and answer.status_code < 300:
            restore_models()  # the next registration is to find the names free, and few processes

    # Where any text is as good as another, no value is wrong.
    with suppress(Unsatisfiable) if mode is schemathesis.GenerationMode.NEGATIVE else nullcontext():
        ask()
    return sent


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("listener", Listener, ids=lambda listener: listener.value)
def test_every_answer_is_one_that_is_described(
    server: Server, restore_models: Callable[[], None], listener: Listener, mode: Any
) -> None:
    port = server.address(listener).port
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    sent = 0
    for found in schema.get_all_operations():
        restore_models()
        sent += ask_many(found.ok(), mode, restore_models)
    assert sent >= EXAMPLES
