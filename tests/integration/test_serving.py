"""The whole server in one event loop with real workers, asked over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

HANDLERS = Path(__file__).parents[1] / "handlers"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    phrase: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A keep-alive connection that can do little but does it visibly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.phrase = ""  # of the latest answer

    @classmethod
    async def connect(cls, server: Server, kind: Listener = Listener.INFERENCE) -> Client:
        address = server.address(kind)
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        await self.send(method, path, body, **headers)
        return await self.answer()

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        for name, value in headers.items():  # TorchServe's own headers are the only ones with underscores
            lines.append(f"{name if name.startswith('ts_') else name.replace('_', '-')}: {value}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        _, status, self.phrase = first.split(" ", 2)
        return int(status), headers

    async def answer(self) -> Answer:
        status, headers = await self.head()
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            body = b"".join([chunk async for chunk in self.chunks()])
        return Answer(status, headers, body, self.phrase)

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def put_model(store: Path, name: str, handler: str, config: str = "") -> None:
    """A directory model of one of the test handlers, or of the given source."""
    place = store / name
    (place / "MAR-INF").mkdir(parents=True)
    (place / "handler.py").write_text(handler if "\n" in handler else (HANDLERS / f"{handler}.py").read_text())
    model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py"}
    if config:
        (place / "config.yaml").write_text(config)
        model["configFile"] = "config.yaml"
    (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


PID = "import os\ndef handle(data, context):\n    return data and [str(os.getpid()) for _ in data]\n"
FIELDS = "def handle(data, context):\n    return data and [{k: str(v) for k, v in row.items()} for row in data]\n"
ONE_WORKER = "minWorkers: 1\nmaxWorkers: 1\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    put_model(place, "echo", "echo")
    return place


@pytest.fixture
async def server(store: Path, tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(model_store=store, load_models=("echo",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    client = await Client.connect(server)
    yield client
    await client.close()


@pytest.fixture
async def management(server: Server) -> AsyncIterator[Client]:
    client = await Client.connect(server, Listener.MANAGEMENT)
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"a": [1, 2]}', "application/json", b'{\n  "a": [\n    1,\n    2\n  ]\n}'),
        (b"caf\xc3\xa9", "text/plain", b"caf\xc3\xa9"),
        (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
        (b"{broken", "application/json", b"{broken"),
        (b"", "", b""),
    ],
)
async def test_bodies_reach_the_handler_as_their_content_type_says(
    client: Client, body: bytes, content_type: str, expected: bytes
) -> None:
    answer = await client.ask("POST", "/predictions/echo", body, Content_Type=content_type)
    assert (answer.status, answer.body) == (200, expected)


async def test_a_large_body_arrives_whole_and_leaves_no_memory_behind(server: Server, client: Client) -> None:
    body = os.urandom(3_000_000)
    for _ in range(3):
        answer = await client.ask("PUT", "/predictions/echo/1.0", body, Content_Type="application/octet-stream")
        assert answer.body == body
    assert server.arena.used == 0


async def test_a_body_over_the_limit_is_refused_and_the_server_goes_on(server: Server, client: Client) -> None:
    answer = await client.ask("POST", "/predictions/echo", bytes(6_553_501))
    assert (answer.status, answer.json["code"]) == (413, 413)
    second = await Client.connect(server)
    assert (await second.ask("GET", "/ping")).json == {"status": "Healthy"}
    await second.close()


async def test_form_fields_and_files_arrive_by_name(store: Path, server: Server, client: Client) -> None:
    put_model(
        store,
        "fields",
        "def handle(data, context):\n    return data and [{k: str(v) for k, v in row.items()} for row in data]\n",
    )
    management = await Client.connect(server, Listener.MANAGEMENT)
    assert (await management.ask("POST", "/models?url=fields&initial_workers=1")).status == 200
    await management.close()
    body = (
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\nhello\r\n"
        b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n7\r\n--x--\r\n'
    )
    answer = await client.ask("POST", "/predictions/fields", body, Content_Type="multipart/form-data; boundary=x")
    assert answer.json == {"data": "hello", "n": "bytearray(b'7')"}
    answer = await client.ask("POST", "/predictions/fields", b"a=1+2", Content_Type="application/x-www-form-urlencoded")
    assert answer.json == {"a": "bytearray(b'1 2')"}
    answer = await client.ask(
        "POST", "/predictions/fields", b"--x\r\nbroken", Content_Type="multipart/form-data; boundary=x"
    )
    assert (answer.status, answer.json["type"]) == (400, "BadRequestException")


@pytest.mark.parametrize(
    ("method", "path", "status", "type_", "message"),
    [
        ("POST", "/predictions/absent", 404, "ModelNotFoundException", "Model not found: absent"),
        (
            "POST",
            "/predictions/echo/9.9",
            404,
            "ModelVersionNotFoundException",
            "Model version: 9.9 does not exist for model: echo",
        ),
        (
            "GET",
            "/nowhere",
            404,
            "ResourceNotFoundException",
            "Requested resource is not found, please refer to API document.",
        ),
        (
            "GET",
            "/",
            405,
            "MethodNotAllowedException",
            "Requested method is not allowed, please refer to API document.",
        ),
    ],
)
async def test_what_cannot_be_served_says_so_as_it_always_did(
    client: Client, method: str, path: str, status: int, type_: str, message: str
) -> None:
    answer = await client.ask(method, path)
    assert answer.status == status
    assert [answer.json[key] for key in ("code", "type", "message")] == [status, type_, message]


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("value", 503, "Prediction failed"),
        ("memory", 507, "Out of resources"),
        ("cuda", 507, "Out of resources"),
        ("prediction", 422, "no such label"),
        ("crash", 500, "Worker died."),
    ],
)
async def test_failing_handlers_give_their_documented_answers(
    store: Path, tmp_path: Path, fault: str, status: int, message: str
) -> None:
    put_model(store, "raises", "raises", ONE_WORKER)
    async with running_server(model_store=store, load_models=("raises",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        answer = await client.ask("POST", "/predictions/raises", fault.encode(), Content_Type="text/plain")
        assert (answer.status, answer.json["message"]) == (status, message)
        assert answer.json["type"] == "InternalServerException"
        await client.close()


async def test_a_streamed_answer_comes_piece_by_piece(store: Path, server: Server, client: Client) -> None:
    put_model(store, "streams", STREAMS)
    management = await Client.connect(server, Listener.MANAGEMENT)
    await management.ask("POST", "/models?url=streams&initial_workers=1")
    await management.close()
    await client.send("POST", "/predictions/streams")
    status, headers = await client.head()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert [chunk async for chunk in client.chunks()] == [b"hello", b"hello", b"hello", b"hello world "]
    assert (await client.ask("GET", "/ping")).status == 200


STREAMS = """
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    for _ in range(3):
        send_intermediate_predict_response(["hello"], context.request_ids, "Intermediate", 200, context)
    return ["hello world "]
"""


async def test_models_are_managed_as_the_contract_says(store: Path, management: Client) -> None:
    put_model(store, "pid", PID)
    answer = await management.ask("POST", "/models?url=pid&initial_workers=1&synchronous=true")
    assert (answer.status, answer.json) == (
        200,
        {"status": 'Model "pid" Version: 1.0 registered with 1 initial workers'},
    )
    assert [row["modelName"] for row in (await management.ask("GET", "/models?limit=1")).json["models"]] == ["echo"]
    answer = await management.ask("PUT", "/models/pid?min_worker=2&synchronous=true")
    assert (answer.status, answer.json) == (200, {"status": "Workers scaled to 2 for model: pid"})
    (description,) = (await management.ask("GET", "/models/pid")).json
    assert [worker["status"] for worker in description["workers"]] == ["READY", "READY"]
    assert (await management.ask("PUT", "/models/pid/1.0/set-default")).status == 200
    assert (await management.ask("POST", "/models?url=pid")).status == 409
    assert (await management.ask("DELETE", "/models/pid/1.0")).json == {"status": 'Model "pid" unregistered'}
    assert (await management.ask("GET", "/models/pid")).status == 404
    assert (await management.ask("PATCH", "/models")).status == 405


async def test_a_model_that_cannot_be_imported_is_refused_with_the_cause(store: Path, management: Client) -> None:
    put_model(store, "lost", "import nowhere_to_be_found\n")
    answer = await management.ask("POST", "/models?url=lost&initial_workers=1")
    assert (answer.status, answer.json["message"]) == (500, "Failed to start workers for model lost version: 1.0")
    assert "nowhere_to_be_found" in answer.json["hint"]
    assert str(store) not in answer.body.decode()
    assert (await management.ask("GET", "/models/lost")).status == 404


async def test_metrics_tell_what_happened(server: Server, client: Client) -> None:
    await client.ask("POST", "/predictions/echo", b"x")
    metrics = await Client.connect(server, Listener.METRICS)
    answer = await metrics.ask("GET", "/metrics")
    await metrics.close()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    assert 'ts_inference_requests_total{model_name="echo",model_version="default",' in text
    assert "# TYPE mariner_request_latency_seconds histogram" in text


async def test_requests_that_a_killed_worker_had_not_begun_are_answered_by_its_successor(
    store: Path, tmp_path: Path
) -> None:
    put_model(store, "pid", PID, ONE_WORKER)
    async with running_server(model_store=store, load_models=("pid",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        first = int((await client.ask("GET", "/predictions/pid")).body)
        os.kill(first, signal.SIGKILL)
        answer = await client.ask("GET", "/predictions/pid")
        assert answer.status == 200
        assert int(answer.body) != first
        await client.close()


async def test_twenty_thousand_requests_survive_two_kills(store: Path, tmp_path: Path) -> None:
    """Each answer is the request's own, also of those that ran; nothing hangs; service resumes."""
    count, clients, kill_at = 20_000, 64, (5_000, 12_000)
    async with running_server(model_store=store, load_models=("echo",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        numbers = iter(range(count))
        done = 0

        async def ask_on() -> None:
            nonlocal done
            client = await Client.connect(server)
            for number in numbers:
                answer = await client.ask("POST", "/predictions/echo", f"request {number}".encode())
                assert (answer.status, answer.body) == (200, f"request {number}".encode())
                done += 1
                if done in kill_at:
                    (version,) = server.models.registry
                    os.kill(version.pool.workers[0].pid, signal.SIGKILL)
            await client.close()

        async with asyncio.timeout(120):
            await asyncio.gather(*(ask_on() for _ in range(clients)))
        assert done == count
        last = await Client.connect(server)
        assert (await last.ask("POST", "/predictions/echo", b"still here")).body == b"still here"
        await last.close()


async def test_stopping_under_load_answers_every_request_that_was_accepted(store: Path, tmp_path: Path) -> None:
    async with running_server(model_store=store, load_models=("echo",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in range(32)]
        for client in clients:
            await client.ask("GET", "/ping")
        answered = 0
        torn: list[bytes] = []
        warm = asyncio.Event()

        async def ask_until_closed(client: Client) -> None:
            nonlocal answered
            while True:
                try:
                    answer = await client.ask("POST", "/predictions/echo", b"x")
                except ConnectionError:
                    return  # between two requests a connection may close
                except asyncio.IncompleteReadError as end:
                    torn.append(end.partial)  # in the middle of an answer it may not
                    return
                assert answer.status in {200, 503}, answer
                answered += 1
                if answered > 200:
                    warm.set()
                if answer.headers["connection"] == "close":
                    assert await client.reader.read() == b""
                    return

        tasks = [asyncio.create_task(ask_until_closed(client)) for client in clients]
        await warm.wait()
        assert await server.stop()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)
        assert not any(torn)
        for client in clients:
            with suppress(ConnectionError):
                await client.close()


async def test_the_server_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    before = names_in(tmp_path)
    async with running_server(model_store=store, load_models=("echo",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        (version,) = server.models.registry
        pid = version.pool.workers[0].pid
        assert psutil.pid_exists(pid)
    assert names_in(tmp_path) == before
    assert not psutil.pid_exists(pid)
