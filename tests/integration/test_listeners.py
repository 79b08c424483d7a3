"""Addresses of every kind, served by the whole server with real workers."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_serving import Client, names_in, put_model

from mariner.auth import Listener
from mariner.config import Address, load_config
from mariner.errors import ConfigurationError
from mariner.serve import Server
from mariner.testing import running_server
from tls_files import Pair, make_pair

pytestmark = pytest.mark.slow

SECURE = Address.parse("https://localhost:0")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "tls")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    put_model(place, "echo", "echo")
    return place


@pytest.fixture
async def secure(store: Path, tmp_path: Path, pair: Pair) -> AsyncIterator[Server]:
    """All three listeners with TLS, from PEM files."""
    async with running_server(
        model_store=store,
        load_models=("echo",),
        temp_dir=tmp_path,
        inference_address=SECURE,
        management_address=SECURE,
        metrics_address=SECURE,
        private_key_file=pair.key_file,
        certificate_file=pair.certificate_file,
    ) as server:
        await server.models.wait_until_ready()
        yield server


async def connect(server: Server, pair: Pair, kind: Listener = Listener.INFERENCE) -> Client:
    port = server.address(kind).port
    return Client(*await asyncio.open_connection("localhost", port, ssl=pair.client_context()))


async def curl(*words: str) -> str:
    done = await asyncio.to_thread(subprocess.run, ["curl", "-sS", "--max-time", "20", *words], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


# -- TLS -------------------------------------------------------------------------------------------------------------


async def test_every_listener_speaks_tls(secure: Server, pair: Pair) -> None:
    client = await connect(secure, pair)
    assert (await client.ask("POST", "/predictions/echo", b"x")).body == b"x"
    assert str(secure.address(Listener.INFERENCE)).startswith("https://localhost:")
    await client.close()
    client = await connect(secure, pair, Listener.MANAGEMENT)
    assert [model["modelName"] for model in (await client.ask("GET", "/models")).json["models"]] == ["echo"]
    await client.close()
    client = await connect(secure, pair, Listener.METRICS)
    assert b"ts_inference_requests_total" in (await client.ask("GET", "/metrics")).body
    await client.close()


async def test_a_large_body_arrives_whole_and_leaves_no_memory_behind(secure: Server, pair: Pair) -> None:
    client = await connect(secure, pair)
    body = os.urandom(3_000_000)
    for _ in range(3):
        answer = await client.ask("PUT", "/predictions/echo", body, Content_Type="application/octet-stream")
        assert answer.body == body
    assert secure.arena.used == 0
    await client.close()


async def test_curl_uploads_a_file(secure: Server, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"content" * 100_000)
    url = f"https://localhost:{secure.address(Listener.INFERENCE).port}/predictions/echo"
    answer = await curl("--cacert", str(pair.certificate_file), url, "-T", str(tmp_path / "upload"))
    assert answer == "content" * 100_000


async def test_what_runs_is_answered_when_the_server_stops(secure: Server, store: Path, pair: Pair) -> None:
    put_model(
        store, "naps", "import time\ndef handle(data, context):\n    time.sleep(0.3)\n    return data and ['rested']\n"
    )
    management = await connect(secure, pair, Listener.MANAGEMENT)
    assert (await management.ask("POST", "/models?url=naps&initial_workers=1")).status == 200
    idle = await connect(secure, pair)
    await idle.ask("GET", "/ping")
    client = await connect(secure, pair)
    await client.send("POST", "/predictions/naps")
    stopping = asyncio.create_task(secure.stop())
    assert (await client.answer()).body == b"rested"
    async with asyncio.timeout(10):
        assert await stopping
    assert await idle.reader.read() == b""
    for each in (management, idle, client):
        await each.close()


async def test_a_keystore_serves_too(store: Path, tmp_path: Path, pair: Pair) -> None:
    settings = {"inference_address": SECURE, "keystore": pair.keystore(tmp_path / "keystore.p12")}
    async with running_server(model_store=store, temp_dir=tmp_path, **settings) as server:
        client = await connect(server, pair)
        assert (await client.ask("GET", "/ping")).json == {"status": "Healthy"}
        await client.close()
        plain = await Client.connect(server, Listener.MANAGEMENT)  # each listener decides for itself
        assert (await plain.ask("GET", "/models")).status == 200
        await plain.close()


async def test_without_a_certificate_nothing_starts_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with pytest.raises(ConfigurationError, match="needs a key and a certificate"):
        async with running_server(
            temp_dir=tmp_path, inference_address=SECURE, management_address=Address.parse(f"unix:{path}")
        ):
            pass
    assert names_in(tmp_path) == []


def test_a_host_alone_means_the_ports_of_tls(tmp_path: Path) -> None:
    names = ("inference", "management", "metrics")
    flags = {f"{name}_address": "https://127.0.0.1" for name in names}
    config = load_config(flags, {}, tmp_path)
    assert [getattr(config, f"{name}_address").port for name in names] == [443, 8444, 8445]


# -- Unix sockets ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def on_socket(store: Path, tmp_path: Path) -> AsyncIterator[Server]:
    """Inference and management on one Unix socket."""
    address = Address.parse(f"unix:{tmp_path / 'server.sock'}")
    async with running_server(
        model_store=store,
        load_models=("echo",),
        temp_dir=tmp_path,
        inference_address=address,
        management_address=address,
        enable_metrics_api=False,
    ) as server:
        await server.models.wait_until_ready()
        yield server


class UnixConnection(http.client.HTTPConnection):
    """An ordinary client on a Unix socket."""

    def __init__(self, path: str, host: str) -> None:
        super().__init__(host, timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


async def test_one_socket_serves_predictions_and_management(on_socket: Server) -> None:
    assert len(on_socket.listeners) == 1
    path = on_socket.address(Listener.INFERENCE).path
    socket_ = ("--unix-socket", path)
    assert await curl(
        *socket_, "http://localhost/predictions/echo", "-d", "hello", "-H", "Content-Type: text/plain"
    ) == ("hello")
    assert '"modelName": "echo"' in await curl(*socket_, "http://anything.example/models")


async def test_callers_on_a_socket_may_manage_models_whatever_host_they_name(on_socket: Server, store: Path) -> None:
    put_model(store, "second", "echo")

    def manage() -> list[int]:
        connection = UnixConnection(on_socket.address(Listener.MANAGEMENT).path, "a.name.of.no.bound.address")
        statuses = []
        for method, target in (("POST", "/models?url=second"), ("GET", "/models/second"), ("DELETE", "/models/second")):
            connection.request(method, target)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        return statuses

    assert await asyncio.to_thread(manage) == [200, 200, 200]


async def test_a_large_body_arrives_whole_through_a_socket(on_socket: Server) -> None:
    body = os.urandom(3_000_000)
    client = Client(*await asyncio.open_unix_connection(on_socket.address(Listener.INFERENCE).path))
    answer = await client.ask("PUT", "/predictions/echo", body, Content_Type="application/octet-stream")
    assert answer.body == body
    assert on_socket.arena.used == 0
    await client.close()


async def test_the_socket_goes_with_the_server(on_socket: Server) -> None:
    directory = Path(on_socket.address(Listener.INFERENCE).path).parent
    assert "server.sock" in names_in(directory)
    await on_socket.stop()
    assert "server.sock" not in names_in(directory)


async def test_a_socket_is_given_back_if_another_address_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses = {
            "inference_address": Address.parse(f"unix:{tmp_path / 'socket'}"),
            "management_address": Address.parse(f"http://127.0.0.1:{taken.getsockname()[1]}"),
        }
        with pytest.raises(ConfigurationError, match="Failed to bind"):
            async with running_server(temp_dir=tmp_path, **addresses):
                pass
    assert names_in(tmp_path) == []


# -- the command -----------------------------------------------------------------------------------------------------


async def test_the_command_says_where_it_listens_and_stops_in_order(tmp_path: Path, pair: Pair) -> None:
    path = tmp_path / "server.sock"
    (tmp_path / "config.properties").write_text(
        f"inference_address=https://127.0.0.1:0\nmanagement_address=unix:{path}\nenable_metrics_api=false\n"
        f"private_key_file={pair.key_file}\ncertificate_file={pair.certificate_file}\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mariner", "serve", cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines: list[str] = []
        while not any("Model server started" in line for line in lines):
            line = (await process.stdout.readline()).decode()
            assert line, lines
            lines.append(line)
        text = "".join(lines)
        assert f"Management API bind to: unix:{path}\n" in text
        port = int(text.partition("Inference API bind to: https://127.0.0.1:")[2].split()[0])
        answer = await curl("--cacert", str(pair.certificate_file), f"https://localhost:{port}/ping", "-4")
        assert "Healthy" in answer
        assert await curl("--unix-socket", str(path), "http://localhost/models") == '{\n  "models": []\n}\n'
        process.terminate()
        assert await process.wait() == 0
    assert "server.sock" not in names_in(tmp_path)
