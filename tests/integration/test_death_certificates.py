"""Workers that die in each way there is: what it was is named at once, in the record and in the answer."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_serving import ONE_WORKER, Answer, Client, put_model

from mariner.auth import Listener
from mariner.testing import running_server

pytestmark = pytest.mark.slow

PROMPTLY = 2.0  # seconds within which a death is to be named

DIES = """
import ctypes, os, sys, time
def handle(data, context):
    for row in data or ():
        how = row["body"].decode()
        if how == "segfault":
            ctypes.string_at(0)
        if how == "exit":
            os._exit(3)
        if how == "sys.exit":
            sys.exit(4)
        if how == "abort":
            print("terminate called after throwing an instance of 'c10::Error'", file=sys.stderr)
            print("  what():  CUDA error: device-side assert triggered", file=sys.stderr, flush=True)
            os.abort()
        if how == "kill":
            os.kill(os.getpid(), 9)
        if how == "terminate":
            os.kill(os.getpid(), 10)
        if how == "hang":
            time.sleep(600)
    return data and ["alive" for _ in data]
"""


class Scene:
    """A server with one model, and who asks it."""

    def __init__(self, server: Any, inference: Client, management: Client) -> None:
        self.server = server
        self.inference = inference
        self.management = management

    async def predict(self, body: bytes) -> tuple[Answer, float]:
        """The answer, and the seconds it took."""
        began = time.monotonic()
        answer = await self.inference.ask("POST", "/predictions/m", body)
        return answer, time.monotonic() - began

    async def manage(self, method: str, path: str) -> Answer:
        return await self.management.ask(method, path)

    async def latest(self) -> dict[str, Any]:
        answer = await self.manage("GET", "/models/m/deaths")
        assert answer.status == 200, answer.body
        latest: dict[str, Any] = answer.json["deaths"][0]
        return latest


@asynccontextmanager
async def serving(tmp_path: Path, handler: str, config: str = "", *, load: bool = True) -> AsyncIterator[Scene]:
    store = tmp_path / "store"
    store.mkdir()
    put_model(store, "m", handler, ONE_WORKER + config)
    async with running_server(
        model_store=store, load_models=("m",) if load else (), temp_dir=tmp_path, warm_start=False
    ) as server:
        await server.models.wait_until_ready()
        scene = Scene(server, await Client.connect(server), await Client.connect(server, Listener.MANAGEMENT))
        try:
            yield scene
        finally:
            await scene.inference.close()
            await scene.management.close()


# -- while it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cause", "summary", "facts"),
    [
        (
            "segfault",
            "crash",
            "it was killed by signal 11 (SIGSEGV) at handler.py:7",
            {"signal": "SIGSEGV", "location": {"file": "handler.py", "line": 7, "function": "handle"}},
        ),
        ("exit", "exit", "it exited with code 3: code that it ran called exit", {"exitCode": 3}),
        ("sys.exit", "exit", "it exited with code 4: code that it ran called exit", {"exitCode": 4}),
        (
            "abort",
            "cuda_error",
            "the GPU failed: it was killed by signal 6 (SIGABRT) at handler.py:15",
            {"signal": "SIGABRT"},
        ),
        ("terminate", "killed", "it was killed by signal 10 (SIGUSR1), which somebody sent", {"signal": "SIGUSR1"}),
    ],
)
async def test_what_ends_a_running_worker_is_named(
    tmp_path: Path, how: str, cause: str, summary: str, facts: dict[str, Any]
) -> None:
    async with serving(tmp_path, DIES) as scene:
        answer, seconds = await scene.predict(how.encode())
        assert seconds < PROMPTLY
        assert (answer.status, answer.json["message"]) == (500, "Worker died.")
        assert (answer.json["reason"], answer.json["hint"]) == (cause, f"W-9000-m_1.0: {summary}.")
        assert str(tmp_path) not in answer.body.decode()
        death = await scene.latest()
        assert (death["id"], death["cause"], death["summary"]) == (answer.json["death_id"], cause, summary)
        assert {key: death[key] for key in facts} == facts
        size = len(how)
        assert death["requests"] == [{"id": answer.headers["x-request-id"], "size": size, "running": True}]
        assert death["memory"][-1]["bytes"] > 0


async def test_a_kill_from_outside_is_told_from_one_for_lack_of_memory(tmp_path: Path) -> None:
    async with serving(tmp_path, DIES) as scene:
        answer, seconds = await scene.predict(b"kill")
        assert seconds < PROMPTLY
        assert answer.json["reason"] == "killed"
        assert "which somebody sent: the kernel counts no kill for lack of memory" in answer.json["hint"]
        assert (await scene.latest())["oomKills"] == 0


async def test_a_hang_is_named_with_the_line_it_hangs_at(tmp_path: Path) -> None:
    async with serving(tmp_path, DIES, "responseTimeout: 1\n") as scene:
        answer, seconds = await scene.predict(b"hang")
        assert seconds < 1 + PROMPTLY
        assert answer.json["reason"] == "response_timeout"
        summary = "it gave no answer within 1 s (responseTimeout); it was at handler.py:21"
        assert answer.json["hint"] == f"W-9000-m_1.0: {summary}."
        death = await scene.latest()
        assert (death["cause"], death["summary"], death["signal"]) == ("response_timeout", summary, "SIGKILL")
        assert death["location"] == {"file": "handler.py", "line": 21, "function": "handle"}


# -- while it loads ----------------------------------------------------------------------------------------------------

LOADS = """
import os, resource, time
{top}
def handle(data, context):
    if data is None:
        {body}
    return data
"""


@pytest.mark.parametrize(
    ("code", "status", "cause", "hint"),
    [
        (
            {"top": "import no_such_module"},
            500,
            "import_error",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ({"top": "def broken(:"}, 500, "import_error", "SyntaxError: invalid syntax (handler.py, line 3)"),
        ({"body": "raise ValueError('no weights')"}, 500, "load_failed", "ValueError: no weights"),
        ({"body": "open('/dev/full', 'w').write('x' * 100_000)"}, 500, "disk_full", "OSError: [Errno 28]"),
        (
            {"body": "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 31)"},
            507,
            "out_of_memory",
            "System out of memory",
        ),
        ({"body": "raise RuntimeError('CUDA error: device-side assert triggered')"}, 507, "cuda_error", "System out"),
        ({"body": "raise RuntimeError('CUDA out of memory. Tried')"}, 507, "cuda_out_of_memory", "System out"),
        ({"body": "os._exit(3)"}, 500, "exit", "it exited with code 3: code that it ran called exit"),
        (
            {"body": "import ctypes; ctypes.string_at(0)"},
            500,
            "crash",
            "it was killed by signal 11 (SIGSEGV) at handler",
        ),
    ],
)
async def test_what_ends_a_loading_worker_is_named(
    tmp_path: Path, code: dict[str, str], status: int, cause: str, hint: str
) -> None:
    handler = LOADS.format(**{"top": "", "body": "pass", **code})
    async with serving(tmp_path, handler, load=False) as scene:
        began = time.monotonic()
        answer = await scene.manage("POST", "/models?url=m&initial_workers=1")
        assert time.monotonic() - began < PROMPTLY + 1  # an interpreter has to start first
        assert (answer.status, answer.json["reason"]) == (status, cause)
        assert answer.json["hint"].startswith(hint)
        assert str(tmp_path) not in answer.body.decode()
        death = await scene.latest()  # though the model is not registered any more
        assert (death["id"], death["cause"], death["workerState"]) == (answer.json["death_id"], cause, "loading")
        if "exception" in death:
            line = 3 if "top" in code else 6
            assert (death["location"]["file"], death["location"]["line"]) == ("handler.py", line)
            assert death["stderr"][-1] == "Backend worker process died."


async def test_a_model_that_takes_too_long_to_load_is_named_with_the_line(tmp_path: Path) -> None:
    handler = LOADS.format(top="", body="time.sleep(600)")
    async with serving(tmp_path, handler, load=False) as scene:
        began = time.monotonic()
        answer = await scene.manage("POST", "/models?url=m&initial_workers=1&startup_timeout=1")
        assert time.monotonic() - began < 1 + PROMPTLY
        assert answer.json["reason"] == "startup_timeout"
        summary = "it did not load the model within 1 s (startupTimeout); it was at handler.py:6"
        assert answer.json["hint"] == summary
        assert (await scene.latest())["summary"] == summary
