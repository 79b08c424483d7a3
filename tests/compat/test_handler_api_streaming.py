"""Answers that come in pieces: items 37 and 39 of the handler contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from handler_api import PYTHON, TRIO, Model, Scene, serving
from test_serving import Client

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MODELS = {
    "python": Model(PYTHON),
    "trio": Model(TRIO, "batchSize: 3\nbatchingPolicy: fill\nmaxBatchDelay: 600000\n"),
}

STREAM = """
import warnings
from {module} import send_intermediate_predict_response as send

context.set_response_content_type(0, "text/event-stream")
context.set_response_status({status}, "", 0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        send(["hello"], context.request_ids, "Intermediate Prediction success", 200, context)
answer = ["hello world " + ",".join(sorted({{warning.category.__name__ for warning in caught}}))]
"""

RAISE_AFTER_A_PIECE = """
from ts.handler_utils.utils import send_intermediate_predict_response as send

send(["first"], context.request_ids, "Intermediate Prediction success", 200, context)
raise ValueError("too late")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("streaming"), MODELS) as scene:
        yield scene


@pytest_asyncio.fixture(loop_scope="module")
async def client(scene: Scene) -> AsyncIterator[Client]:
    client = await Client.connect(scene.server)
    yield client
    await client.close()


async def send(client: Client, code: str, model: str = "python") -> None:
    await client.send("POST", f"/predictions/{model}", code.encode(), Content_Type="text/plain")


@pytest.mark.parametrize(
    ("module", "warned"),
    [("ts.handler_utils.utils", ""), ("ts.protocol.otf_message_handler", "PendingDeprecationWarning")],
)
async def test_37_three_pieces_and_the_result_are_four_chunks(client: Client, module: str, warned: str) -> None:
    await send(client, STREAM.format(module=module, status=200))
    status, headers = await client.head()
    assert (status, headers["transfer-encoding"], headers["ts_stream_next"]) == (200, "chunked", "true")
    assert headers["content-type"] == "text/event-stream"
    assert [chunk async for chunk in client.chunks()] == [b"hello"] * 3 + [f"hello world {warned}".encode()]
    assert (await client.ask("GET", "/ping")).status == 200


async def test_37_the_status_is_the_one_before_the_first_piece(client: Client) -> None:
    await send(client, STREAM.format(module="ts.handler_utils.utils", status=202))
    assert (await client.head())[0] == 202


@pytest.mark.parametrize(
    ("piece", "sent"), [("{'a': 1}", b'{\n  "a": 1\n}'), ("b'\\x00'", b"\x00"), ("'ü'", "ü".encode())]
)
async def test_37_a_piece_may_be_what_an_answer_may_be(client: Client, piece: str, sent: bytes) -> None:
    call = f"send([{piece}], context.request_ids, '', 200, context)"
    await send(
        client, f"from ts.handler_utils.utils import send_intermediate_predict_response as send\n{call}\nanswer = ['']"
    )
    await client.head()
    assert [chunk async for chunk in client.chunks()] == [sent]


async def test_37_a_piece_for_one_request_of_a_batch_reaches_only_that_one(scene: Scene) -> None:
    # The ids of a part of the batch are counted anew, so that only the id can tell whose piece it is.
    code = (
        "from ts.handler_utils.utils import send_intermediate_predict_response as send\n"
        "send(['piece '], {0: context.request_ids[index]}, '', 200, context)\nanswer = 'end'"
    )
    answers = await scene.run_three("answer = 'whole'", code, code)
    assert [answer.body for answer in answers] == [b"whole", b"piece end", b"piece end"]
    assert ["transfer-encoding" in answer.headers for answer in answers] == [False, True, True]


async def test_39_an_exception_after_a_piece_ends_the_connection_without_a_second_answer(client: Client) -> None:
    await send(client, RAISE_AFTER_A_PIECE)
    status, headers = await client.head()
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert await asyncio.wait_for(client.reader.read(), 20) == b"5\r\nfirst\r\n"  # no end, no status line


async def test_39_the_worker_goes_on_after_a_broken_stream(scene: Scene, client: Client) -> None:
    pid = (await scene.run("import os; answer = [str(os.getpid())]")).body
    await send(client, RAISE_AFTER_A_PIECE)
    await asyncio.wait_for(client.reader.read(), 20)
    assert (await scene.run("import os; answer = [str(os.getpid())]")).body == pid
