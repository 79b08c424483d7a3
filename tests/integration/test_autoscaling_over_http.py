"""Real workers that come and go with the load of real clients."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_serving import Client, put_model

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

SLEEPS = """
import time

def handle(data, context):
    if data is None:
        return None
    time.sleep(0.05)
    return ["awake"] * len(data)
"""
FAILS_WITH_TWO = """
import pathlib

def handle(data, context):
    if data is None:
        place = pathlib.Path(context.system_properties["model_dir"]) / "loaded"
        if place.exists():
            raise RuntimeError("there is only one licence")
        place.touch()
        return None
    import time
    time.sleep(0.05)
    return ["awake"] * len(data)
"""


@asynccontextmanager
async def serving(store: Path, **settings: object) -> AsyncIterator[Server]:
    settings = {"load_models": ("m",), **settings}
    async with running_server(model_store=store, temp_dir=store.parent, **settings) as server:
        await server.models.wait_until_ready()
        yield server


class Crowd:
    """Clients that ask one request after the other until told to go.

    Attributes:
        statuses: of their answers.
        served: set when they have got forty.
    """

    def __init__(self, server: Server, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.served = asyncio.Event()
        self.gone = False
        self._tasks = [asyncio.create_task(self._ask(server)) for _ in range(count)]

    async def _ask(self, server: Server) -> None:
        client = await Client.connect(server)
        while not self.gone:
            self.statuses[(await client.ask("POST", "/predictions/m", b"x")).status] += 1
            if self.statuses.total() == 40:
                self.served.set()
        await client.close()

    async def leave(self) -> None:
        self.gone = True
        await asyncio.gather(*self._tasks)


async def describe(server: Server) -> dict[str, Any]:
    (description,) = await server.models.describe("m", None)
    return description


async def until(server: Server, condition: Callable[[dict[str, Any]], bool]) -> float:
    """Seconds until the description is so."""
    begun = time.monotonic()
    async with asyncio.timeout(30):
        while not condition(await describe(server)):  # noqa: ASYNC110 - as clients wait for it
            await asyncio.sleep(0.005)
    return time.monotonic() - begun


def has_ready(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda description: [worker["state"] for worker in description["workers"]] == ["ready"] * count


async def test_ten_times_the_load_is_met_within_a_second_and_the_workers_go_when_it_has_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = tmp_path / "store"
    put_model(store, "m", SLEEPS, "minWorkers: 1\nmaxWorkers: 4\nworkerIdleTimeoutSec: 0.5\n")
    async with serving(store) as server:
        crowd = Crowd(server, 1)
        await asyncio.wait_for(crowd.served.wait(), 20)
        assert has_ready(1)(await describe(server))  # a single client needs no second worker
        more = Crowd(server, 9)
        took = await until(server, has_ready(4))
        await crowd.leave()
        await more.leave()
        loads = [float(text.rpartition(" ")[0].rpartition(" ")[2]) for text in ready_lines(caplog)]
        assert took < 1.0 + max(loads)
        assert set(crowd.statuses + more.statuses) == {200}
        await until(server, has_ready(1))
        management = await Client.connect(server, Listener.METRICS)
        page = (await management.ask("GET", "/metrics")).body.decode()
        await management.close()
    labels = 'model_name="m",model_version="1.0",'
    assert f'mariner_worker_starts_total{{{labels}reason="waiting_work",}} 3.0' in page
    assert f'mariner_worker_stops_total{{{labels}reason="idle",}} 3.0' in page
    assert f"mariner_workers{{{labels}}} 1.0" in page
    assert [record.message.partition(", ")[0] for record in caplog.records if record.name == "mariner.scaler"][-3:] == [
        f"Model m version 1.0: W-{id_}-m_1.0 stops" for id_ in (9003, 9002, 9001)
    ]


def ready_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if " is ready after " in record.message]


async def test_the_first_request_loads_the_model_and_the_last_worker_goes_after_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put_model(store, "m", SLEEPS, "minWorkers: 0\nmaxWorkers: 2\nworkerIdleTimeoutSec: 0.2\n")
    async with serving(store) as server:
        client = await Client.connect(server)
        for _ in range(2):
            assert (await describe(server))["state"] == "unloaded"
            assert (await client.ask("GET", "/ping")).json == {"status": "Healthy"}
            assert (await client.ask("GET", "/v2/health/ready")).json == {"ready": True}
            answer = await client.ask("GET", "/v2/models/m/ready")
            assert (answer.status, answer.json) == (200, {"name": "m", "ready": True, "state": "unloaded"})
            assert (await client.ask("POST", "/predictions/m", b"x")).body == b"awake"
            await until(server, has_ready(0))
        await client.close()


async def test_a_second_worker_that_cannot_load_costs_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    put_model(store, "m", FAILS_WITH_TWO, "minWorkers: 1\nmaxWorkers: 2\n")
    async with serving(store) as server:
        crowd = Crowd(server, 5)
        await until(server, lambda description: "given up" in str(description["autoscaling"]))
        await crowd.leave()
        description = await describe(server)
        client = await Client.connect(server)
        assert (await client.ask("GET", "/ping")).json == {"status": "Healthy"}
        await client.close()
    assert set(crowd.statuses) == {200}
    assert "there is only one licence" in description["autoscaling"]["lastDecision"]["reason"]
    assert has_ready(1)(description)
    assert sum("was given up" in record.message for record in caplog.records) == 1


async def test_what_does_not_fit_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mariner.memory.available_memory", lambda: 1 << 20)
    store = tmp_path / "store"
    put_model(store, "m", SLEEPS, "minWorkers: 1\nmaxWorkers: 2\n")
    async with serving(store) as server:
        crowd = Crowd(server, 5)
        await until(server, lambda description: "not started" in str(description["autoscaling"]))
        await crowd.leave()
        assert has_ready(1)(await describe(server))
    assert set(crowd.statuses) == {200}
    (line,) = [record.message for record in caplog.records if "not started" in record.message]
    assert line.endswith(" of memory and 1 MiB are left.")


async def test_without_autoscale_the_workers_stay_as_many_as_they_are(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put_model(store, "m", SLEEPS, "minWorkers: 1\nmaxWorkers: 4\n")
    async with serving(store, autoscale=False) as server:
        crowd = Crowd(server, 5)
        await asyncio.wait_for(crowd.served.wait(), 20)
        await crowd.leave()
        description = await describe(server)
        assert has_ready(1)(description)
        assert description["autoscaling"]["enabled"] is False
