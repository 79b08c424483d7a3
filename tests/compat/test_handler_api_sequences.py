"""Handlers that remember: items 40 and 41 of the handler contract, continuous and sequence batching."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from handler_api import Model, Scene, serving
from test_serving import Client

from mariner.testing import settle

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 30  # until an answer counts as lost
FOR_EVER = "1000000000"  # steps

# Each request ends as its body says: a number of steps, "join" when another has joined, "alone" when no other is left.
STEPS = """
class Handler:
    def initialize(self, context):
        context.cache = {}

    def handle(self, data, context):
        ids = list(context.request_ids.values())
        for row, id_ in zip(data, ids):
            if row:
                context.cache[id_] = {"asked": row["body"], "steps": 0, "rows": []}
            context.cache[id_]["rows"].append(sorted(row))
            context.cache[id_]["steps"] += 1
        asked = [context.cache[id_]["asked"] for id_ in ids]
        if "raise" in asked:
            raise ValueError("asked to")
        context.stopping_criteria = [self.criterion(context.cache[id_], len(ids)) for id_ in ids]
        return [{"rows": context.cache[id_]["rows"], "together": len(ids)} if word == "rows" else f"{len(ids)} "
                for id_, word in zip(ids, asked)]

    def criterion(self, state, together):
        word = state["asked"]
        ends = {"rows": state["steps"] == 3, "join": together > 1, "alone": together == 1, "none": None}
        return lambda _: ends[word] if word in ends else state["steps"] >= int(word)
"""

SEQUENCES = """
import os
SEEN = {}
def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        sequence = context.get_sequence_id(index)
        SEEN.setdefault(sequence, []).append(row["body"])
        if row["body"] == "end":
            context.set_response_header(index, context.header_key_sequence_end, f"nobody;{sequence}")
        answers.append({
            "pid": os.getpid(), "id": sequence, "seen": SEEN[sequence],
            "start": context.get_request_header(index, context.header_key_sequence_start),
            "batch": [context.get_sequence_id(other) for other in range(len(data))],
        })
    return answers
"""

LIMITS = "sequenceBatching: true\nsequenceMaxIdleMSec: 600000\nmaxSequenceJobQueueSize: 9\n"
MODELS = {
    "steps": Model(STEPS, "batchSize: 3\ncontinuousBatching: true\n"),
    "sequences": Model(SEQUENCES, f"{LIMITS}minWorkers: 2\nmaxWorkers: 2\nbatchSize: 4\nmaxNumSequence: 50\n"),
    "both": Model(SEQUENCES, f"{LIMITS}continuousBatching: true\nmaxNumSequence: 1\n"),
    "one": Model(SEQUENCES, f"{LIMITS}maxNumSequence: 1\n"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("sequences"), MODELS) as scene:
        yield scene


@pytest_asyncio.fixture(loop_scope="module")
async def client(scene: Scene) -> AsyncIterator[Client]:
    client = await Client.connect(scene.server)
    yield client
    await client.close()


async def begin(client: Client, body: str) -> None:
    """Sends a request to ``steps`` and waits for its first piece."""
    await client.send("POST", "/predictions/steps", body.encode(), Content_Type="text/plain")
    async with asyncio.timeout(SECONDS):
        assert (await client.head())[1]["transfer-encoding"] == "chunked"
        await client.reader.readuntil(b" \r\n")


async def step(scene: Scene, body: str) -> Any:
    async with asyncio.timeout(SECONDS):
        return await scene.run(body, "steps")


async def remember(scene: Scene, body: str, sequence: str, model: str = "sequences") -> Any:
    """One request of a sequence, answered."""
    async with asyncio.timeout(SECONDS):
        answer = await scene.run(body, model, ts_request_sequence_id=sequence)
    assert answer.status == 200, answer.body
    return answer.json


# -- continuous batching ---------------------------------------------------------------------------------------------


async def test_40_a_request_brings_its_body_once(scene: Scene) -> None:
    answer = await step(scene, "rows")
    last = answer.body.decode().rpartition("}{")[2]
    assert json.loads("{" + last)["rows"] == [["body"], [], []]


async def test_40_false_keeps_a_request_and_true_ends_it(client: Client) -> None:
    await client.send("POST", "/predictions/steps", b"3", Content_Type="text/plain")
    status, headers = await client.head()
    assert (status, headers["transfer-encoding"], headers["ts_stream_next"]) == (200, "chunked", "true")
    assert [chunk async for chunk in client.chunks()] == [b"1 "] * 3


@pytest.mark.parametrize(("body", "header"), [("none", None), ("1", "false")])
async def test_40_none_or_true_at_once_is_a_plain_answer(scene: Scene, body: str, header: str | None) -> None:
    answer = await step(scene, body)
    assert (answer.status, answer.body, answer.headers.get("ts_stream_next")) == (200, b"1 ", header)
    assert answer.headers["content-length"] == "2"


async def test_40_a_request_joins_one_that_runs(scene: Scene, client: Client) -> None:
    await begin(client, "join")
    assert (await step(scene, "1")).body == b"2 "
    pieces = [chunk async for chunk in client.chunks()]
    assert (set(pieces[:-1]) <= {b"1 "}, pieces[-1]) == (True, b"2 ")


async def test_40_no_more_run_than_the_batch_size(scene: Scene) -> None:
    clients = [await Client.connect(scene.server) for _ in range(3)]
    for client in clients:
        await begin(client, FOR_EVER)
    fourth = asyncio.create_task(step(scene, "1"))
    pool = scene.server.models.registry.get("steps", None).pool
    async with asyncio.timeout(SECONDS):
        while not pool.waiting:
            await settle()
    await clients[0].close()
    assert (await fourth).body == b"3 "
    for client in clients[1:]:
        await client.close()
    assert (await step(scene, "alone")).body.endswith(b"1 ")


async def test_40_a_client_that_hangs_up_is_gone_from_the_next_steps(scene: Scene, client: Client) -> None:
    await begin(client, FOR_EVER)
    await client.close()
    assert (await step(scene, "alone")).body.endswith(b"1 ")


async def test_40_an_exception_ends_what_runs_and_the_worker_goes_on(scene: Scene, client: Client) -> None:
    await begin(client, FOR_EVER)
    answer = await step(scene, "raise")
    assert (answer.status, answer.json["message"]) == (503, "Prediction failed")
    rest = await asyncio.wait_for(client.reader.read(), SECONDS)
    assert not rest.endswith(b"0\r\n\r\n")  # cut, as in any stream that fails
    assert (await step(scene, "1")).body == b"1 "


# -- sequence batching -----------------------------------------------------------------------------------------------


async def test_41_each_sequence_stays_with_a_worker_and_in_order(scene: Scene) -> None:
    async def converse(sequence: str) -> list[Any]:
        return await asyncio.gather(*(remember(scene, str(number), sequence) for number in range(8)))

    told = await asyncio.gather(*(converse(f"s{number}") for number in range(6)))
    for answers in told:
        assert len({answer["pid"] for answer in answers}) == 1
        longest = max(answers, key=lambda answer: len(answer["seen"]))["seen"]
        assert all(answer["seen"] == longest[: len(answer["seen"])] for answer in answers)
        assert len(longest) == 8
        assert all(len(answer["batch"]) == len(set(answer["batch"])) for answer in answers)
    assert len({answers[0]["pid"] for answers in told}) == 2


async def test_41_requests_of_one_connection_keep_their_order(client: Client) -> None:
    asked = [str(number) for number in range(8)]
    for word in asked:
        await client.send(
            *("POST", "/predictions/sequences", word.encode()), Content_Type="text/plain", ts_request_sequence_id="line"
        )
    answers = [await asyncio.wait_for(client.answer(), SECONDS) for _ in asked]
    assert answers[-1].json["seen"] == asked


async def test_41_without_an_id_one_is_made_and_told(scene: Scene) -> None:
    first = await scene.run("a", "sequences")
    id_ = first.headers["ts_request_sequence_id"]
    assert re.fullmatch(r"ts-seq-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id_)
    assert (first.json["id"], first.json["start"]) == (id_, "true")
    second = await remember(scene, "b", id_)
    assert (second["seen"], second["start"], second["pid"]) == (["a", "b"], None, first.json["pid"])


@pytest.mark.parametrize("model", ["both", "one"])
async def test_41_the_handler_ends_a_sequence_with_a_header(scene: Scene, model: str) -> None:
    await remember(scene, "1", "a", model)
    refused = await scene.run("1", model, ts_request_sequence_id="b")
    assert (refused.status, refused.json["reason"]) == (503, "too_many_sequences")
    await remember(scene, "end", "a", model)
    assert (await remember(scene, "end", "b", model))["seen"] == ["end"]
