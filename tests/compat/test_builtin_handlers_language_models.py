"""Language models in a real server, on stand-ins for their engines: items 16 and 17 of the reference.

Details of vLLM's and TensorRT-LLM's side are in the unit tests of the handlers.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from served_models import ONE_WORKER, ask, put_archive
from test_serving import Client

from mariner.serve import Server
from mariner.testing import running_server

pytestmark = [pytest.mark.slow, pytest.mark.torch]

STAND_INS = Path(__file__).parents[1] / "stand_ins"
PATH = os.pathsep.join(map(str, [STAND_INS, STAND_INS / "vllm_current", STAND_INS / "tensorrt_llm_1"]))
ASYNC = f"{ONE_WORKER}asyncCommunication: true\n"
JSON = {"Content_Type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    place = tmp_path_factory.mktemp("language")
    store = place / "store"
    put_archive(store, "llm", "vllm_handler", {}, f"{ASYNC}handler: {{model_path: tiny}}\n")
    put_archive(store, "trt", "trt_llm_handler", {}, f"{ASYNC}handler: {{engine_dir: tiny}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        async with running_server(model_store=store, load_models=("llm", "trt"), temp_dir=place) as server:
            await server.models.wait_until_ready()
            yield server


def as_json(**body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.asyncio(loop_scope="module")
async def test_16_the_three_routes_of_openai_are_answered(server: Server) -> None:
    base = "/predictions/llm/1.0/v1"
    completed = await ask(server, "POST", f"{base}/completions", as_json(prompt="a b"), **JSON)
    assert (completed.status, completed.headers["content-type"]) == (200, "application/json")
    assert completed.json["choices"][0]["text"] == "b a"
    messages = [{"role": "user", "content": "c d"}]
    chat = await ask(server, "POST", f"{base}/chat/completions", as_json(messages=messages), **JSON)
    assert chat.json["choices"][0]["text"] == "d c"
    assert (await ask(server, "GET", f"{base}/models")).json["data"] == [{"id": "tiny"}]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ["/predictions/llm", "/predictions/llm/1.0/v1/embeddings"])
async def test_16_another_route_is_not_found(server: Server, path: str) -> None:
    answer = await ask(server, "POST", path, as_json(prompt="a"), **JSON)
    assert answer.status == 404
    assert answer.json["message"].startswith("Unknown API endpoint: ")


@pytest.mark.asyncio(loop_scope="module")
async def test_16_an_error_of_the_client_has_its_status(server: Server) -> None:
    answer = await ask(server, "POST", "/predictions/llm/1.0/v1/completions", b"{}", **JSON)
    assert (answer.status, answer.json["error"]["message"]) == (400, "body.prompt: Field required")


@pytest.mark.asyncio(loop_scope="module")
async def test_16_a_stream_arrives_event_by_event(server: Server) -> None:
    client = await Client.connect(server)
    body = as_json(prompt="a b c", stream=True)
    await client.send("POST", "/predictions/llm/1.0/v1/completions", body, **JSON)
    status, headers = await client.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert [chunk async for chunk in client.chunks()] == [
        *(f'data: {{"text": "{word}"}}\n\n'.encode() for word in "cba"),
        b"data: [DONE]\n\n",
    ]
    await client.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_16_a_worker_whose_engine_has_died_makes_room_for_another(server: Server) -> None:
    path = "/predictions/llm/1.0/v1/completions"
    lost = await ask(server, "POST", path, as_json(prompt="die"), **JSON)
    assert (lost.status, lost.json["message"]) == (500, "Worker died.")
    assert (await ask(server, "POST", path, as_json(prompt="a b"), **JSON)).status == 200


@pytest.mark.asyncio(loop_scope="module")
async def test_17_tensorrt_llm_answers_with_text_or_pieces_of_it(server: Server) -> None:
    whole = await ask(server, "POST", "/predictions/trt", as_json(prompt="a b c"), **JSON)
    assert (whole.status, whole.body) == (200, b"c b a")
    client = await Client.connect(server)
    await client.send("POST", "/predictions/trt", as_json(prompt="a b c", streaming=True), **JSON)
    assert (await client.head())[0] == 200
    pieces = [chunk async for chunk in client.chunks()]
    assert [json.loads(piece)["text"] for piece in pieces] == ["c", " b", " a"]
    await client.close()


async def test_the_launcher_serves_a_model_until_it_is_told_to_stop(tmp_path: Path) -> None:
    free = "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
    (tmp_path / "config.properties").write_text(f"{free}disable_system_metrics=true\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ts.llm_launcher", "--model_id", "tiny", "--model_store", "store"),
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": PATH,
            "TS_CONFIG_FILE": str(tmp_path / "config.properties"),
            "TMPDIR": str(tmp_path),  # where the pid file lies
        },
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    address = ""
    async with asyncio.timeout(120):
        try:
            async for line in process.stdout:
                if found := re.search(rb"Inference API bind to: (\S+)", line):
                    address = found[1].decode()
                if b"-model_1.0 is ready" in line:
                    break
            url = f"{address}/predictions/model/1.0/v1/completions"
            request = urllib.request.Request(url, as_json(prompt="a b"), {"Content-Type": "application/json"})
            with await asyncio.to_thread(urllib.request.urlopen, request, timeout=60) as response:
                assert json.load(response)["choices"][0]["text"] == "b a"
        finally:
            process.send_signal(signal.SIGTERM)  # the launcher stops its server
            await process.stdout.read()
            status = await process.wait()
    assert status == 0
    assert list((tmp_path / "store").iterdir()) == []
