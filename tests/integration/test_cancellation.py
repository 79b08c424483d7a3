"""Handlers see that nobody waits any more, and work that nobody wants never reaches one. Real workers and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from test_serving import ONE_WORKER, Client, put_model

from mariner.testing import running_server

pytestmark = pytest.mark.slow

BLOCKING = """
import time

seen = []

def handle(data, context):
    if data is None:
        return None
    word = data[0]["body"]
    if word == "tell":
        return ["; ".join(seen)]
    if word == "work":
        while not context.cancelled(0):
            time.sleep(0.001)
        word = f"stopped with {context.remaining_time(0):g} s left"
    elif word == "limit":
        return [str(context.remaining_time())]
    seen.append(word)
    return [word]
"""

IN_A_THREAD = BLOCKING.replace(
    """        while not context.cancelled(0):
            time.sleep(0.001)
""",
    """        def watch():
            while not context.cancelled(0):
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        thread.join()
""",
).replace("import time", "import threading, time")

ASYNCHRONOUS = (
    BLOCKING.replace("def handle", "async def handle")
    .replace("import time", "import asyncio")
    .replace("time.sleep", "await asyncio.sleep")
    .replace('"tell":\n', '"tell":\n        while not seen:\n            await asyncio.sleep(0.001)\n')
)

KINDS = [(BLOCKING, ""), (IN_A_THREAD, ""), (ASYNCHRONOUS, "asyncCommunication: true\n")]
NAMES = ["blocking", "thread", "asynchronous"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("handler", "config"), KINDS, ids=NAMES)
async def test_a_handler_sees_that_its_client_has_gone(tmp_path: Path, handler: str, config: str) -> None:
    put_model(tmp_path / "store", "m", handler, ONE_WORKER + config)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        pool = server.models.registry.get("m", None).pool
        leaving, staying = await Client.connect(server), await Client.connect(server)
        await leaving.send("POST", "/predictions/m", b"work", Content_Type="text/plain")
        await until(lambda: pool.in_flight == 1)
        await leaving.close()
        async with asyncio.timeout(10):
            answer = await staying.ask("POST", "/predictions/m", b"tell", Content_Type="text/plain")
        assert answer.body == b"stopped with 0 s left"
        await staying.close()


@pytest.mark.parametrize(("handler", "config"), KINDS, ids=NAMES)
async def test_a_handler_sees_that_the_deadline_has_passed(tmp_path: Path, handler: str, config: str) -> None:
    put_model(tmp_path / "store", "m", handler, ONE_WORKER + config)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        late = {"Content_Type": "text/plain", "X_Request_Timeout_Ms": "1000"}  # enough to be begun
        async with asyncio.timeout(10):
            assert (await client.ask("POST", "/predictions/m", b"work", **late)).status == 504
            answer = await client.ask("POST", "/predictions/m", b"tell", Content_Type="text/plain")
        assert answer.body == b"stopped with 0 s left"
        await client.close()


async def test_a_handler_is_told_how_much_time_it_has(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", BLOCKING, ONE_WORKER)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        plain = {"Content_Type": "text/plain"}
        answer = await client.ask("POST", "/predictions/m", b"limit", **plain)
        assert answer.body == b"inf"
        answer = await client.ask("POST", "/predictions/m", b"limit", **plain, X_Request_Timeout_Ms="60000")
        assert 59.0 < float(answer.body) <= 60.0
        await client.close()


async def test_who_leaves_takes_his_request_out_of_the_queue(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", BLOCKING, ONE_WORKER)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        pool = server.models.registry.get("m", None).pool
        blocking, leaving, patient = [await Client.connect(server) for _ in range(3)]
        text = {"Content_Type": "text/plain"}
        async with asyncio.timeout(10):
            await blocking.send("POST", "/predictions/m", b"work", **text)
            await until(lambda: pool.in_flight == 1)
            await leaving.send("POST", "/predictions/m", b"left", **text)
            await until(lambda: pool.waiting == 1)
            await leaving.close()
            await until(lambda: pool.waiting == 0)
            await blocking.close()
            told = (await patient.ask("POST", "/predictions/m", b"tell", **text)).body
        assert told == b"stopped with 0 s left"
        await patient.close()


async def test_what_nobody_wants_any_more_is_not_run_though_the_worker_has_it(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", BLOCKING, ONE_WORKER)
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        pool = server.models.registry.get("m", None).pool
        clients = [await Client.connect(server) for _ in range(5)]
        blocking, leaving, hurried, patient, _ = clients
        text = {"Content_Type": "text/plain"}
        async with asyncio.timeout(10):
            for _ in range(3):  # it learns that this model is fast, and gives its worker several batches ahead
                await patient.ask("POST", "/predictions/m", b"warm", **text)
            await blocking.send("POST", "/predictions/m", b"work", **text)
            await until(lambda: pool.in_flight == 1)
            await leaving.send("POST", "/predictions/m", b"left", **text)
            await until(lambda: pool.in_flight == 2)
            await hurried.send("POST", "/predictions/m", b"late", **text, X_Request_Timeout_Ms="50")
            await until(lambda: pool.in_flight == 3)
            await patient.send("POST", "/predictions/m", b"kept", **text)
            await until(lambda: pool.in_flight == 4)
            await leaving.close()
            answer = await hurried.answer()
            assert (answer.status, answer.json["reason"]) == (408, "deadline_exceeded")
            await blocking.close()
            assert (await patient.answer()).body == b"kept"
            told = (await patient.ask("POST", "/predictions/m", b"tell", **text)).body
        assert told == b"warm; warm; warm; stopped with 0 s left; kept"
        assert pool.in_flight == 0
        for client in clients[2:]:
            await client.close()
