"""Workers that die in each way there is: what it was is named at once, in the record and in the answer."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_serving import ONE_WORKER, Answer, Client, put_model

from mariner.auth import Listener
from mariner.logs import BLOCK
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
async def serving(
    tmp_path: Path, handler: str, config: str = "", *, load: bool = True, warm_start: bool = False
) -> AsyncIterator[Scene]:
    store = tmp_path / "store"
    store.mkdir()
    put_model(store, "m", handler, ONE_WORKER + config)
    async with running_server(
        model_store=store, load_models=("m",) if load else (), temp_dir=tmp_path, warm_start=warm_start
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
        told = f"W-9000-m_1.0: {summary}. The request had killed another worker before and is not run again."
        assert (answer.json["reason"], answer.json["hint"]) == (cause, told)
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


# -- memory ------------------------------------------------------------------------------------------------------------

GROWS = """
def handle(data, context):
    return data and [str(len(b"x" * int(row["body"]))) for row in data]
"""
SERVER = """
import asyncio, sys
from pathlib import Path
from mariner.auth import Listener
from mariner.testing import running_server

async def main():
    place = Path(sys.argv[1])
    settings = {"model_store": place / "store", "load_models": ("m",), "temp_dir": place, "warm_start": False}
    async with running_server(**settings) as server:
        await server.models.wait_until_ready()
        ports = [server.address(kind).port for kind in (Listener.INFERENCE, Listener.MANAGEMENT)]
        print("listens", *ports, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
LIMIT = 300 << 20  # bytes; server and worker have less than half of it


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group that may have :data:`LIMIT` bytes of memory."""
    root = Path("/sys/fs/cgroup")
    parent, limit = (root / "memory", "memory.limit_in_bytes") if (root / "memory").is_dir() else (root, "memory.max")
    group = parent / f"mariner-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"control groups cannot be made here: {error}")
    yield group
    group.rmdir()


async def test_a_kill_by_the_kernel_for_lack_of_memory_is_named(tmp_path: Path, memory_group: Path) -> None:
    (tmp_path / "store").mkdir()
    put_model(tmp_path / "store", "m", GROWS, ONE_WORKER)
    join = f'echo $$ > {memory_group}/cgroup.procs && exec "$0" "$@"'
    server = await asyncio.create_subprocess_exec(
        *("sh", "-c", join, sys.executable, "-c", SERVER, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        said = [line.decode().split() async for line in limited(server.stdout, b"listens")][-1]
        inference, management = [Client(*await asyncio.open_connection("127.0.0.1", int(port))) for port in said[1:]]
        assert (await inference.ask("POST", "/predictions/m", b"1000")).body == b"1000"
        began = time.monotonic()
        answer = await inference.ask("POST", "/predictions/m", str(2 * LIMIT).encode())
        assert time.monotonic() - began < PROMPTLY
        assert (answer.status, answer.json["reason"]) == (500, "oom_kill")
        assert "by the kernel, for lack of memory" in answer.json["hint"]
        death = (await management.ask("GET", "/models/m/deaths")).json["deaths"][0]
        assert (death["id"], death["signal"], death["oomKills"]) == (answer.json["death_id"], "SIGKILL", 1)
        await inference.close()
        await management.close()
    finally:
        server.kill()
        await server.wait()
        async with asyncio.timeout(20):
            while (memory_group / "cgroup.procs").read_text():  # noqa: ASYNC110 - its workers die with it
                await asyncio.sleep(0.01)


async def limited(lines: asyncio.StreamReader, last: bytes) -> AsyncIterator[bytes]:
    """Lines up to the one that begins so."""
    async with asyncio.timeout(30):
        async for line in lines:
            yield line
            if line.startswith(last):
                return


# -- the GPU -----------------------------------------------------------------------------------------------------------

LOST_GPU = """
import os, sys, types

class cuda:
    # Stands in for PyTorch's: a device-side assert came, and every call fails from then on.
    lost = False

    def is_initialized():
        return True

    def synchronize():
        if cuda.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)

def handle(data, context):
    for row in data or ():
        if row["body"] == b"assert":
            cuda.lost = True
        if row["body"] != b"fine":
            raise RuntimeError("CUDA error: device-side assert triggered\\nCUDA kernel errors might be asynchronous.")
    return data and [str(os.getpid()) for _ in data]
"""


async def test_a_worker_whose_gpu_is_lost_ends_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, LOST_GPU) as scene:
        before = (await scene.predict(b"fine"))[0].body
        answer, seconds = await scene.predict(b"assert")
        assert seconds < PROMPTLY
        assert (answer.status, answer.json["message"], answer.json["reason"]) == (500, "Worker died.", "cuda_error")
        death = await scene.latest()
        assert death["summary"].startswith("the GPU failed: RuntimeError: CUDA error: device-side assert triggered")
        assert death["location"] == {"file": "handler.py", "line": 22, "function": "handle"}
        after = (await scene.predict(b"fine"))[0].body
        assert after != before


async def test_a_worker_whose_gpu_still_answers_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, LOST_GPU) as scene:
        before = (await scene.predict(b"fine"))[0].body
        assert (await scene.predict(b"only this call"))[0].status == 507
        assert (await scene.predict(b"fine"))[0].body == before
        assert (await scene.manage("GET", "/models/m/deaths")).json["deaths"] == []


# -- where it is told --------------------------------------------------------------------------------------------------


async def test_the_certificate_is_in_the_log_the_description_the_list_and_the_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = "import sys\n" + DIES.replace(
        "os._exit(3)", "[print('line', n, file=sys.stderr) for n in range(60)]; exit(3)"
    )
    async with serving(tmp_path, handler) as scene:
        answer, _ = await scene.predict(b"exit")
        death = await scene.latest()
        assert death["stderr"] == [f"line {number}" for number in range(10, 60)]
        deaths = (await scene.manage("GET", "/models/m/1.0/deaths")).json["deaths"]
        assert (deaths[0], len(deaths)) == (death, 2)  # the request was run twice
        (described,) = (await scene.manage("GET", "/models/m")).json
        brief = {key: value for key, value in death.items() if key not in {"stderr", "memory"}}
        assert described["deaths"][0] == brief
        _, record = (record for record in caplog.records if record.name == "mariner.deaths")
        assert record.getMessage() == (
            "W-9000-m_1.0 died (exit): it exited with code 3: code that it ran called exit. "
            f"Death certificate {answer.json['death_id']}:"
        )
        block = getattr(record, BLOCK).splitlines()
        assert block[1] == "  exit      code 3"
        assert f"  requests  {answer.headers['x-request-id']} (4 bytes, running)" in block
        assert block[-51:] == ["  stderr", *(f"    line {number}" for number in range(10, 60))]
        exposed = scene.server.models.metrics.expose()
        assert 'mariner_worker_deaths_total{model_name="m",model_version="1.0",cause="exit",} 2.0' in exposed


async def test_a_model_none_of_whose_workers_died_has_no_certificates(tmp_path: Path) -> None:
    async with serving(tmp_path, DIES) as scene:
        answer = await scene.manage("GET", "/models/m/deaths")
        assert answer.json == {"modelName": "m", "modelVersion": "1.0", "deaths": []}
        assert "deaths" not in (await scene.manage("GET", "/models/m")).json[0]
        assert (await scene.manage("GET", "/models/other/deaths")).status == 404


async def test_a_worker_that_was_asked_to_go_has_no_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path, DIES) as scene:
        assert (await scene.manage("PUT", "/models/m?min_worker=0&max_worker=0&synchronous=true")).status == 200
        (version,) = scene.server.models.registry
        async with asyncio.timeout(20):
            while version.pool._keepers:  # noqa: ASYNC110 - nothing tells when the last one has gone
                await asyncio.sleep(0.01)
        assert (await scene.manage("GET", "/models/m/deaths")).json["deaths"] == []


async def test_what_keeps_the_standard_error_open_does_not_keep_the_answer(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    starts = f"import subprocess; open('{pids}', 'a').write(f\"{{subprocess.Popen(['sleep', '600']).pid}}\\n\"); "
    async with serving(tmp_path, DIES.replace("os._exit(3)", f"{starts}os._exit(3)")) as scene:
        try:
            answer, seconds = await scene.predict(b"exit")
        finally:
            sleepers = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
            for sleeper in sleepers:
                sleeper.kill()
        for sleeper in sleepers:
            await asyncio.to_thread(sleeper.wait, 10)
        await scene.predict(b"fine")  # meanwhile the end of the streams is noticed
        assert len(sleepers) == 2  # the request was run twice
        assert seconds < PROMPTLY
        assert answer.json["reason"] == "exit"


# -- revival -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [("PUT", "/models/m?min_worker=1&synchronous=true"), ("POST", "/models?url=m")])
async def test_a_broken_model_tells_why_and_is_revived_by_scaling_and_by_registering_it(
    tmp_path: Path, call: tuple[str, str]
) -> None:
    weights = tmp_path / "weights"
    handler = f"from pathlib import Path\nWEIGHTS = Path('{weights}').read_text()\n{GROWS}"
    async with serving(tmp_path, handler, "maxRetryTimeoutInSec: 0\n") as scene:
        (described,) = (await scene.manage("GET", "/models/m")).json
        reason = "it raised FileNotFoundError: [Errno 2] No such file or directory: 'weights' (handler.py:2)"
        assert (described["state"], described["brokenReason"]) == ("broken", reason)
        answer, _ = await scene.predict(b"5")
        assert (answer.status, answer.json["reason"]) == (503, "broken")
        assert answer.json["hint"] == f"The last worker: {reason}. Scale the model or register it again to retry."
        assert answer.json["death_id"] == described["deaths"][0]["id"]
        weights.write_text("yes")
        again = await scene.manage(*call)
        assert again.status == 200, again.body
        answer, _ = await scene.predict(b"5")
        assert answer.body == b"5"
        (described,) = (await scene.manage("GET", "/models/m")).json
        assert described["state"] == "ready"
        assert "brokenReason" not in described
        assert len(described["deaths"]) == 1


async def test_a_model_that_works_cannot_be_registered_again(tmp_path: Path) -> None:
    async with serving(tmp_path, GROWS) as scene:
        assert (await scene.manage("POST", "/models?url=m")).status == 409


# -- forked from the warm template -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cause"), [("segfault", "crash"), ("hang", "response_timeout"), ("exit", "exit"), ("kill", "killed")]
)
async def test_a_forked_worker_is_known_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, cause: str
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "torch.py").write_text("def set_num_threads(count): pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    config = "responseTimeout: 1\n"
    async with serving(tmp_path, f"import torch\n{DIES}", config, warm_start=True) as scene:
        answer, seconds = await scene.predict(how.encode())
        assert seconds < (1 if how == "hang" else 0) + PROMPTLY
        assert answer.json["reason"] == cause
        death = await scene.latest()
        assert death["cause"] == cause
        assert death.get("location", {}).get("line") == {"segfault": 8, "hang": 22}.get(how)
