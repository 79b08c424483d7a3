"""Real workers that reach their limits under load: they are replaced, and every request is answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import psutil
import pytest
from test_serving import Client, put_model

from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

PID = (
    "import os, time\ndef handle(data, context):\n"
    "    time.sleep(0.002)\n    return data and [str(os.getpid())] * len(data)\n"
)
LEAKS = (
    "import os\nkept = []\ndef handle(data, context):\n"
    "    kept.append(bytearray(os.urandom(1)) * 2_000_000)\n    return data and [str(os.getpid())] * len(data)\n"
)
CLIENTS = 6


async def until_replaced(server: Server, model: str, times: int) -> Counter[tuple[int, str]]:
    """Has clients ask without a pause until so many processes have answered; statuses and process ids."""
    seen: Counter[tuple[int, str]] = Counter()

    async def ask() -> None:
        client = await Client.connect(server)
        while len(seen) < times:
            answer = await client.ask("POST", f"/predictions/{model}", b"x")
            seen[answer.status, answer.body.decode() if answer.status == 200 else ""] += 1
        await client.close()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask())
    return seen


@pytest.mark.parametrize(("handler", "limit"), [(PID, "maxRequestsPerWorker: 50"), (LEAKS, "maxWorkerMemoryMB: 150")])
async def test_not_one_request_is_lost(tmp_path: Path, handler: str, limit: str) -> None:
    put_model(tmp_path / "store", "m", handler, f"minWorkers: 2\nmaxWorkers: 2\nbatchSize: 3\n{limit}\n")
    async with running_server(model_store=tmp_path / "store", load_models=("m",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        first = server.models.worker_pids()
        seen = await until_replaced(server, "m", times=6)
        pool = server.models.registry.get("m", None).pool
        assert pool.min_workers == 2
        assert 2 <= len(pool.workers) <= 3
    assert {status for status, _ in seen} == {200}
    assert not any(psutil.pid_exists(pid) for pid in first)
