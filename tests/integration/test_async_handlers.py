"""``asyncCommunication``: requests of one worker overlap; real workers, asked over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_serving import Answer, Client, put_model

from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

SECONDS = 20  # until an answer counts as lost

# Requests wait for each other: one after the other they would wait for ever.
MEETING = """
import asyncio, os

class Handler:
    def initialize(self, context):
        context.complete = asyncio.Event()
        context.present = []

    async def handle(self, data, context):
        word = data[0]["body"]
        if word == "pid":
            return [str(os.getpid())]
        context.present.append(word)
        if len(context.present) == 5:
            context.complete.set()
        await context.complete.wait()
        if word == "raise":
            raise ValueError("asked to")
        if word == "exit":
            os._exit(3)
        context.set_response_header(0, "x-word", word)
        return [word]
"""
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nasyncCommunication: true\nbatchSize: 4\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    store = tmp_path / "store"
    put_model(store, "meeting", MEETING, CONFIG)
    async with running_server(model_store=store, load_models=("meeting",), temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        yield server


async def ask(server: Server, word: str) -> Answer:
    client = await Client.connect(server)
    try:
        asked = client.ask("POST", "/predictions/meeting", word.encode(), Content_Type="text/plain")
        return await asyncio.wait_for(asked, SECONDS)
    finally:
        await client.close()


async def test_five_requests_that_wait_for_each_other_are_answered_by_one_worker(server: Server) -> None:
    words = ["a", "b", "c", "d", "e"]
    answers = await asyncio.gather(*(ask(server, word) for word in words))
    assert [(answer.status, answer.body.decode(), answer.headers["x-word"]) for answer in answers] == [
        (200, word, word) for word in words
    ]


async def test_an_error_answers_only_its_own_request(server: Server) -> None:
    answers = await asyncio.gather(*(ask(server, word) for word in ["a", "raise", "c", "d", "e"]))
    assert [answer.status for answer in answers] == [200, 503, 200, 200, 200]
    assert answers[1].json["message"] == "Prediction failed"


async def test_a_death_loses_what_was_running_and_the_next_request_is_served(server: Server) -> None:
    before = (await ask(server, "pid")).body
    answers = await asyncio.gather(*(ask(server, "exit") for _ in range(5)))
    assert [(answer.status, answer.json["message"]) for answer in answers] == [(500, "Worker died.")] * 5
    after = await ask(server, "pid")
    assert after.status == 200
    assert after.body != before
