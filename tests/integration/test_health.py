"""What probes are told of a server that starts, loses a worker, has a broken model, and stops; with real workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from test_serving import ONE_WORKER, Client, put_model

from mariner.auth import Listener
from mariner.config import Address, Origin, Source
from mariner.serve import Server
from mariner.testing import running_server
from remote import Remote

pytestmark = pytest.mark.slow

# Loads, and answers, as soon as the file is there that stands beside the store.
GATED = """
import pathlib, time

GATE = pathlib.Path({gate!r})

def handle(data, context):
    while not GATE.exists():
        time.sleep(0.001)
    return data and ["ok"] * len(data)
"""
BROKEN = "def handle(data, context):\n    raise ValueError('no weights')\n"
SOON = 1.0  # seconds until a change shows


class Probes:
    """A connection to each listener."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients

    async def ask(self, path: str) -> tuple[int, Any]:
        """What every listener says, which must be the same."""
        answers = [await client.ask("GET", path) for client in self.clients]
        assert all((answer.status, answer.json) == (answers[0].status, answers[0].json) for answer in answers)
        return answers[0].status, answers[0].json

    async def state(self) -> tuple[str, str, bool, int]:
        """What they say of the server; of the model m by v2 and v1; and the status of /ping."""
        assert await self.ask("/v2/health/live") == (200, {"live": True})
        status, server = await self.ask("/v2/health/ready")
        assert (status == 200) is server["ready"]
        status, model = await self.ask("/v2/models/m/ready")
        assert (status == 200) is model["ready"] is (model["state"] == "ready")
        assert await self.ask("/v2/models/m/versions/1.0/ready") == (status, model)
        _, first = await self.ask("/v1/models/m")
        ping = await self.clients[0].ask("GET", "/ping")
        return server.get("state", "ready"), model["state"], first["ready"], ping.status

    async def until(self, *expected: Any) -> None:
        """Waits for a state; what changes between two questions is asked again."""
        async with asyncio.timeout(SOON):
            while True:
                with suppress(AssertionError):
                    if await self.state() == expected:
                        return


@asynccontextmanager
async def probed(server: Server) -> AsyncIterator[Probes]:
    clients = [await Client.connect(server, kind) for kind in Listener]
    try:
        yield Probes(clients)
    finally:
        for client in clients:
            await client.close()


def put_gated(tmp_path: Path) -> Path:
    gate = tmp_path / "gate"
    put_model(tmp_path / "store", "m", GATED.format(gate=str(gate)), ONE_WORKER)
    return gate


async def described(server: Server) -> str:
    (entry,) = await server.models.describe("m", None)
    return str(entry["state"])


async def test_the_death_of_the_only_worker_shows_at_once_and_so_does_its_return(tmp_path: Path) -> None:
    gate = put_gated(tmp_path)
    async with (
        running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server,
        probed(server) as probes,
    ):
        assert await probes.state() == ("loading", "loading", False, 200)
        gate.touch()
        await server.models.wait_until_ready()
        assert await probes.state() == ("ready", "ready", True, 200)
        gate.unlink()
        (pid,) = server.models.worker_pids()
        os.kill(pid, signal.SIGKILL)
        await probes.until("loading", "loading", False, 200)
        assert await described(server) == "loading"
        gate.touch()
        await probes.until("ready", "ready", True, 200)


async def test_a_broken_model_is_told_from_one_that_loads_and_hides_nothing_of_the_others(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", BROKEN, ONE_WORKER + "maxRetryTimeoutInSec: 0\n")
    put_model(tmp_path / "store", "other", "echo", ONE_WORKER)
    async with (
        running_server(model_store=tmp_path / "store", load_models=("m", "other"), temp_dir=tmp_path) as server,
        probed(server) as probes,
    ):
        await server.models.wait_until_ready()
        await probes.until("broken", "broken", False, 500)
        assert await described(server) == "broken"
        assert (await probes.ask("/v2/models/other/ready"))[0] == 200
        answer = await probes.clients[0].ask("POST", "/v2/models/m/infer")
        assert (answer.status, answer.json["reason"], answer.json["error"]) == (503, "broken", answer.json["message"])


async def test_a_server_that_stops_says_so_while_it_answers_what_it_has(tmp_path: Path) -> None:
    gate = put_gated(tmp_path)
    gate.touch()
    async with (
        running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server,
        probed(server) as probes,
    ):
        await server.models.wait_until_ready()
        gate.unlink()
        working = await Client.connect(server)
        await working.send("POST", "/predictions/m")
        while not server.models.registry.get("m", None).pool.in_flight:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        assert await probes.ask("/v2/health/ready") == (503, {"ready": False, "state": "draining"})
        gate.touch()
        assert (await working.answer()).body == b"ok"
        assert await stopping
        await working.close()


async def test_a_server_is_alive_before_it_has_the_archives_of_its_models(tmp_path: Path) -> None:
    remote = Remote(b"HTTP/1.1 200 OK\r\n...")  # and nothing more
    socket = tmp_path / "s"
    context = running_server(
        model_store=tmp_path,
        load_models=(remote.url(),),
        temp_dir=tmp_path,
        inference_address=Address.parse(f"unix:{socket}"),
        allowed_urls=(re.compile("http://127.0.0.1:.*"),),
        origins={"allowed_urls": Origin(Source.FILE, "config.properties")},
    )
    async with AsyncExitStack() as running, asyncio.timeout(20):
        starting = asyncio.create_task(running.enter_async_context(context))
        while not socket.exists() or not remote.requests:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        client = Client(*await asyncio.open_unix_connection(socket))
        assert (await client.ask("GET", "/v2/health/live")).status == 200
        ready = await client.ask("GET", "/v2/health/ready")
        assert (ready.status, ready.json) == (503, {"ready": False, "state": "starting"})
        refused = await client.ask("POST", "/predictions/m")
        assert (refused.status, refused.json["reason"], refused.headers["retry-after"]) == (503, "starting", "1")
        remote.close()
        await starting
        ready = await client.ask("GET", "/v2/health/ready")
        assert (ready.status, ready.json["state"]) == (503, "broken")  # a model that it was to have is not there
        assert (await client.ask("POST", "/predictions/m")).status == 404
        await client.close()
