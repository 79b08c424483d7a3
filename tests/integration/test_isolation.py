"""One bad request never fails its batch-mates; real workers, asked over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from test_serving import Answer, Client, put_model

from mariner.testing import running_server

pytestmark = pytest.mark.slow

SQUARES = """
def handle(data, context):
    if data is None:
        return None
    context.set_response_header(0, "x-batch", str(len(data)))
    return [str(int(row["body"]) ** 2) for row in data]
"""
# 32 requests are exactly one batch, however slowly they come.
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 32\nbatchingPolicy: fill\nmaxBatchDelay: 600000\n"
BODIES = [b"three" if number == 13 else str(number).encode() for number in range(32)]


async def answers_of_one_batch(tmp_path: Path, config: str) -> list[Answer]:
    store = tmp_path / "store"
    put_model(store, "squares", SQUARES, config)
    async with (
        running_server(model_store=store, load_models=("squares",), temp_dir=tmp_path) as server,
        AsyncExitStack() as connections,
    ):
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in BODIES]
        for client in clients:
            connections.push_async_callback(client.close)
        asked = [
            client.ask("POST", "/predictions/squares", body, Content_Type="text/plain")
            for client, body in zip(clients, BODIES, strict=True)
        ]
        return await asyncio.gather(*asked)


async def test_one_malformed_request_of_32_fails_alone(tmp_path: Path) -> None:
    answers = await answers_of_one_batch(tmp_path, CONFIG)
    assert [answer.status for answer in answers] == [503 if number == 13 else 200 for number in range(32)]
    assert answers[13].json["message"] == "Prediction failed"
    assert [int(answer.body) for answer in answers if answer.status == 200] == [
        number**2 for number in range(32) if number != 13
    ]
    assert {answer.headers["x-batch"] for answer in answers if "x-batch" in answer.headers} == {
        "16",
        "8",
        "4",
        "2",
        "1",
    }


async def test_the_model_config_can_turn_it_off(tmp_path: Path) -> None:
    answers = await answers_of_one_batch(tmp_path, CONFIG + "isolateBatchErrors: false\n")
    assert {answer.status for answer in answers} == {503}
