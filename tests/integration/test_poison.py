"""Requests that kill their worker, among others that must not notice; real workers, asked over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from test_serving import Answer, Client, put_model

from mariner.testing import running_server

pytestmark = pytest.mark.slow

# Doubles numbers; words end the process, "crash" as native code does and any other as the kernel does.
DOUBLES = """
import ctypes, os, signal

def handle(data, context):
    if data is None:
        return None
    bodies = [bytes(row["body"]) for row in data]
    if b"crash" in bodies:
        ctypes.string_at(0)
    if not all(body.isdigit() for body in bodies):
        os.kill(os.getpid(), signal.SIGKILL)
    return [str(2 * int(body)) for body in bodies]
"""
ONE_WORKER = "minWorkers: 1\nmaxWorkers: 1\n"
# 32 requests are exactly one batch, however slowly they come.
BATCH = f"{ONE_WORKER}batchSize: 32\nbatchingPolicy: fill\nmaxBatchDelay: 600000\n"


@asynccontextmanager
async def clients_of(tmp_path: Path, config: str, count: int) -> AsyncIterator[list[Client]]:
    store = tmp_path / "store"
    put_model(store, "doubles", DOUBLES, config)
    async with (
        running_server(model_store=store, load_models=("doubles",), temp_dir=tmp_path) as server,
        AsyncExitStack() as connections,
    ):
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in range(count)]
        for client in clients:
            connections.push_async_callback(client.close)
        async with asyncio.timeout(60):
            yield clients


async def ask(client: Client, body: bytes) -> Answer:
    return await client.ask("POST", "/predictions/doubles", body, Content_Type="application/octet-stream")


def deaths(caplog: pytest.LogCaptureFixture) -> int:
    return sum("died while it ran" in message for message in caplog.messages)


@pytest.mark.parametrize(("poison", "cause"), [(b"crash", "signal 11"), (b"kill", "signal 9")])
async def test_one_request_that_kills_workers_fails_alone_in_a_batch_of_32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, poison: bytes, cause: str
) -> None:
    bodies = [poison if number == 13 else b"%d" % number for number in range(32)]
    async with clients_of(tmp_path, BATCH, 32) as clients:
        answers = await asyncio.gather(*map(ask, clients, bodies))
    assert [answer.body for number, answer in enumerate(answers) if number != 13] == [
        b"%d" % (2 * number) for number in range(32) if number != 13
    ]
    assert answers[13].status == 500
    assert answers[13].json["message"] == "Worker died."
    assert cause in answers[13].json["hint"]
    assert deaths(caplog) == 3


async def test_the_model_config_can_turn_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bodies = [b"kill", *(b"%d" % number for number in range(31))]
    async with clients_of(tmp_path, f"{BATCH}isolateBatchErrors: false\n", 32) as clients:
        answers = await asyncio.gather(*map(ask, clients, bodies))
    assert {answer.status for answer in answers} == {500}
    assert deaths(caplog) == 1


async def test_a_request_that_has_killed_two_workers_kills_no_third(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with clients_of(tmp_path, ONE_WORKER, 1) as (client,):
        first, second = await ask(client, b"kill"), await ask(client, b"kill")
        assert (await ask(client, b"21")).body == b"42"
    assert (first.status, first.json["reason"]) == (500, "killed")
    assert (second.status, second.json["reason"]) == (500, "quarantined")
    assert second.json["message"] == 'Model "doubles" does not run this request: an identical one killed two workers.'
    assert 55 <= int(second.headers["retry-after"]) <= 60
    assert deaths(caplog) == 2


@pytest.mark.parametrize("config", [ONE_WORKER, f"{ONE_WORKER}batchSize: 8\n", "minWorkers: 2\nmaxWorkers: 2\n"])
async def test_under_load_every_answer_but_those_of_poison_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str
) -> None:
    numbers = itertools.count()
    poisoned: list[Answer] = []

    async def ask_on(client: Client) -> None:
        while (number := next(numbers)) < 4000:
            if number % 500 == 250:
                poisoned.append(await ask(client, b"poison %d" % number))
            else:
                answer = await ask(client, b"%d" % number)
                assert (answer.status, answer.body) == (200, b"%d" % (2 * number))

    async with clients_of(tmp_path, config, 32) as clients:
        await asyncio.gather(*map(ask_on, clients))
    assert [(answer.status, answer.json["message"]) for answer in poisoned] == [(500, "Worker died.")] * 8
    assert 16 <= deaths(caplog) <= 24
