"""Sequences and continuous batches when something goes wrong; real workers, asked over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_serving import Answer, Client, put_model

from mariner.auth import Listener
from mariner.serve import Server
from mariner.testing import running_server, settle

pytestmark = pytest.mark.slow

SECONDS = 30  # until an answer counts as lost

# A running sum per sequence. It waits on a file, so that a test decides when a request is done.
SUMS = """
import os, pathlib, time
SUMS = {}
def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        word = row["body"]
        if word == "raise":
            raise ValueError("asked to")
        if word == "wait":
            pathlib.Path("waiting").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.001)
        sequence = context.get_sequence_id(index)
        SUMS[sequence] = SUMS.get(sequence, 0) + (int(word) if word.isdigit() else 0)
        answers.append({"sum": SUMS[sequence], "pid": os.getpid()})
    return answers
"""

# One piece per step. A request "stop" ends the others of its sequence; "last" ends when nobody else runs.
STEPS = """
import os
ASKED, STOPPED = {}, set()
def handle(data, context):
    if data is None:
        return None
    ids = list(context.request_ids.values())
    sequences = [context.get_sequence_id(index) for index in range(len(ids))]
    for row, id_, sequence in zip(data, ids, sequences):
        if row:
            ASKED[id_] = row["body"]
        if ASKED[id_] == "stop":
            STOPPED.add(sequence)
        if ASKED[id_] == "exit":
            os._exit(3)
    ends = {"stop": lambda _: True, "last": lambda _: len(ids) == 1}
    context.stopping_criteria = [
        ends.get(ASKED[id_], lambda _, sequence=sequence: sequence in STOPPED) for id_, sequence in zip(ids, sequences)
    ]
    return [f"{ASKED[id_]} " for id_ in ids]
"""

LIMITS = "sequenceBatching: true\nsequenceMaxIdleMSec: 600000\nmaxNumSequence: 4\nmaxSequenceJobQueueSize: 1\n"
ONE = "minWorkers: 1\nmaxWorkers: 1\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    store = tmp_path / "store"
    put_model(store, "sums", SUMS, f"{LIMITS}minWorkers: 2\nmaxWorkers: 2\nbatchSize: 4\n")
    put_model(store, "alone", SUMS, f"{ONE}sequenceBatching: true\nsequenceMaxIdleMSec: 300\n")
    put_model(store, "steps", STEPS, f"{LIMITS}{ONE}batchSize: 2\ncontinuousBatching: true\n")
    models = ("sums", "alone", "steps")
    async with running_server(model_store=store, load_models=models, temp_dir=tmp_path) as server:
        await server.models.wait_until_ready()
        yield server


async def ask(server: Server, body: str, sequence: str = "", *, model: str = "sums", **headers: str) -> Answer:
    if sequence:
        headers["ts_request_sequence_id"] = sequence
    client = await Client.connect(server)
    try:
        asked = client.ask("POST", f"/predictions/{model}", body.encode(), Content_Type="text/plain", **headers)
        return await asyncio.wait_for(asked, SECONDS)
    finally:
        await client.close()


async def manage(server: Server, method: str, path: str) -> Answer:
    client = await Client.connect(server, Listener.MANAGEMENT)
    try:
        return await asyncio.wait_for(client.ask(method, path), SECONDS)
    finally:
        await client.close()


async def stream(server: Server, body: str, sequence: str) -> Client:
    """Begins a request of the model ``steps`` that goes on."""
    client = await Client.connect(server)
    await client.send(
        *("POST", "/predictions/steps", body.encode()), Content_Type="text/plain", ts_request_sequence_id=sequence
    )
    async with asyncio.timeout(SECONDS):
        assert (await client.head())[0] == 200
    return client


def refusal(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.json["type"], answer.json["reason"]


REFUSED = (503, "ServiceUnavailableException")


async def test_a_killed_worker_takes_its_sequences_with_it_and_no_others(server: Server) -> None:
    first, second = [(await ask(server, "5", sequence)).json for sequence in ("a", "b")]
    assert first["pid"] != second["pid"]
    os.kill(first["pid"], signal.SIGKILL)
    (version,) = [version for version in server.models.registry if version.name == "sums"]
    async with asyncio.timeout(SECONDS):
        while any(worker.pid == first["pid"] for worker in version.pool.workers):
            await settle()
    lost = await ask(server, "5", "a")
    assert refusal(lost) == (*REFUSED, "sequence_ended")
    assert lost.json["message"] == 'Model "sums": sequence a has ended: the worker that kept its state is gone.'
    assert refusal(await ask(server, "5", "a")) == (*REFUSED, "sequence_ended")  # told again, never a wrong sum
    assert (await ask(server, "5", "b")).json == {"sum": 10, "pid": second["pid"]}
    again = (await ask(server, "5", "a", ts_request_sequence_start="true")).json
    assert again["sum"] == 5


async def test_what_runs_and_what_waits_is_answered_when_a_worker_dies(server: Server) -> None:
    pid = (await ask(server, "1", "a")).json["pid"]
    (version,) = [version for version in server.models.registry if version.name == "sums"]
    running = asyncio.create_task(ask(server, "wait", "a"))
    async with asyncio.timeout(SECONDS):
        while not (version.archive.model_dir / "waiting").exists():
            await settle()
        waiting = asyncio.create_task(ask(server, "2", "a"))
        while not version.pool.waiting:
            await settle()
    refused = await ask(server, "3", "a")
    assert refusal(refused) == (*REFUSED, "queue_full")
    assert refused.json["message"] == 'Model "sums": 1 requests of sequence a wait, maxSequenceJobQueueSize is 1.'
    os.kill(pid, signal.SIGKILL)
    died, gone = await running, await waiting
    assert (died.status, died.json["message"]) == (500, "Worker died.")
    assert refusal(gone) == (*REFUSED, "sequence_ended")


async def test_a_sequence_that_idled_gives_its_place_to_another(server: Server) -> None:
    assert (await ask(server, "1", "a", model="alone")).status == 200
    refused = await ask(server, "1", "b", model="alone")
    assert (refusal(refused), refused.headers["retry-after"]) == ((*REFUSED, "too_many_sequences"), "1")
    async with asyncio.timeout(SECONDS):
        while (await ask(server, "1", "b", model="alone")).status != 200:
            pass


async def test_a_batch_of_sequences_that_fails_is_not_run_again(server: Server) -> None:
    assert (await ask(server, "1", "a")).json["sum"] == 1
    assert (await ask(server, "raise", "a")).status == 503
    assert (await ask(server, "1", "a")).json["sum"] == 2


async def test_an_id_whose_first_answer_was_an_error_takes_no_place(server: Server) -> None:
    for _ in range(3):
        refused = await ask(server, "raise", model="alone")
        assert (refused.status, refused.json["message"]) == (503, "Prediction failed")
        assert "ts_request_sequence_id" not in refused.headers


async def test_scaling_down_says_so_to_the_sequences_of_the_worker_that_goes(server: Server) -> None:
    for sequence in "abc":  # the first worker has two of them
        assert (await ask(server, "1", sequence)).status == 200
    assert (await manage(server, "PUT", "/models/sums?min_worker=1&max_worker=1&synchronous=true")).status == 200
    assert [(await ask(server, "1", sequence)).status for sequence in "abc"] == [200, 503, 200]


async def test_a_model_with_sequences_describes_itself(server: Server) -> None:
    (shown,) = (await manage(server, "GET", "/models/sums?customized=true")).json
    assert (shown["stateful"], shown["maxNumSequence"], shown["sequenceMaxIdleMSec"]) == (True, 4, 600000)


async def test_a_later_request_of_its_sequence_stops_a_stream(server: Server) -> None:
    streams = [await stream(server, "go", sequence) for sequence in ("a", "b")]
    assert (await ask(server, "stop", "a", model="steps")).body == b"stop "
    async with asyncio.timeout(SECONDS):
        assert {chunk async for chunk in streams[0].chunks()} == {b"go "}
    assert (await ask(server, "stop", "b", model="steps")).status == 200
    for client in streams:
        await client.close()


async def test_a_client_that_hangs_up_leaves_a_continuous_batch(server: Server) -> None:
    leaving = await stream(server, "go", "a")
    await leaving.close()
    assert (await ask(server, "last", "b", model="steps")).body.endswith(b"last ")


async def test_streams_of_a_worker_that_dies_are_cut_and_the_next_one_serves(server: Server) -> None:
    cut = await stream(server, "go", "a")
    died = await ask(server, "exit", "b", model="steps")
    assert (died.status, died.json["message"]) == (500, "Worker died.")
    async with asyncio.timeout(SECONDS):
        assert not (await cut.reader.read()).endswith(b"0\r\n\r\n")
    await cut.close()
    assert refusal(await ask(server, "last", "a", model="steps")) == (*REFUSED, "sequence_ended")
    assert (await ask(server, "last", "c", model="steps")).body.endswith(b"last ")


async def test_unregistering_lets_a_stream_come_to_its_end(server: Server) -> None:
    other = await stream(server, "go", "a")
    running = await stream(server, "last", "b")  # it does not end while the other runs
    going = asyncio.create_task(manage(server, "DELETE", "/models/steps"))
    (version,) = [version for version in server.models.registry if version.name == "steps"]
    async with asyncio.timeout(SECONDS):
        while not version.pool.draining:
            await settle()
    await other.close()
    async with asyncio.timeout(SECONDS):
        assert {chunk async for chunk in running.chunks()} == {b"last "}
    assert json.loads((await going).body) == {"status": 'Model "steps" unregistered'}
    await running.close()
