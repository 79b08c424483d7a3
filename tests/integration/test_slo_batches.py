"""A model with a latency target, served by a real worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from test_serving import ONE_WORKER, Client, put_model

from mariner.auth import Listener
from mariner.testing import running_server

pytestmark = pytest.mark.slow

SLOW_PER_CALL = (
    "import time\ndef handle(data, context):\n    time.sleep(0.01)\n    return data and [str(len(data))] * len(data)\n"
)
CONFIG = f"{ONE_WORKER}batchingPolicy: slo\nlatencySloMs: 200\nbatchSize: 16\n"


async def test_batches_grow_with_the_load_and_describe_shows_what_was_learnt(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "m", SLOW_PER_CALL, CONFIG)
    settings = {"model_store": tmp_path / "store", "load_models": ("m",), "temp_dir": tmp_path}
    async with running_server(**settings) as server:
        await server.models.wait_until_ready()
        clients = [await Client.connect(server) for _ in range(16)]
        alone = await clients[0].ask("POST", "/predictions/m", b"x")
        assert (alone.status, alone.body) == (200, b"1")

        async def ask_often(client: Client) -> list[int]:
            answers = [await client.ask("POST", "/predictions/m", b"x") for _ in range(20)]
            assert {answer.status for answer in answers} == {200}
            return [int(answer.body) for answer in answers]

        sizes = [size for answered in await asyncio.gather(*map(ask_often, clients)) for size in answered]
        management = await Client.connect(server, Listener.MANAGEMENT)
        (description,) = (await management.ask("GET", "/models/m")).json
        for client in (*clients, management):
            await client.close()
    learnt = description["batching"]
    assert 4 <= max(sizes) <= 16
    assert (learnt["latencySloMs"], learnt["batchSize"] >= 4) == (200, True)
    assert learnt["measured"][0]["batchSize"] == 1
    assert all(point["p90Ms"] >= 10 for point in learnt["measured"])
