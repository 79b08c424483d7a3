"""Requests with a deadline, and a handler that takes its time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from test_serving import Client, put_model

from mariner.testing import running_server

pytestmark = pytest.mark.slow

# Runs until the file appears whose name it was sent.
UNTIL = """
import pathlib, time

def handle(data, context):
    if data is None:
        return None
    path = pathlib.Path(data[0]["body"])
    while not path.exists():
        time.sleep(0.001)
    return ["done"]
"""


@pytest.mark.parametrize(
    ("config", "headers"), [("", {"X_Request_Timeout_Ms": "50"}), ("clientTimeoutInMills: 50\n", {})]
)
async def test_nobody_waits_longer_than_he_said(tmp_path: Path, config: str, headers: dict[str, str]) -> None:
    put_model(tmp_path / "store", "until", UNTIL, f"minWorkers: 1\nmaxWorkers: 1\n{config}")
    gate = tmp_path / "gate"
    async with running_server(model_store=tmp_path / "store", load_models=("until",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        running, waiting = await Client.connect(server), await Client.connect(server)
        await running.send("POST", "/predictions/until", str(gate).encode(), Content_Type="text/plain", **headers)
        await waiting.send("POST", "/predictions/until", str(gate).encode(), Content_Type="text/plain", **headers)
        async with asyncio.timeout(10):
            answers = [await running.answer(), await waiting.answer()]
        assert [answer.status for answer in answers] == [504, 408]
        for answer in answers:
            assert (answer.json["type"], answer.json["reason"]) == ("RequestTimeoutException", "deadline_exceeded")
        gate.touch()
        patient = {**headers, "X_Request_Timeout_Ms": "60000"}
        answer = await running.ask(
            "POST", "/predictions/until", str(gate).encode(), Content_Type="text/plain", **patient
        )
        assert (answer.status, answer.body) == (200, b"done")
        await running.close()
        await waiting.close()
