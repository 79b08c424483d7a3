"""Workers that are forked from the warm template; PyTorch is replaced by a file of that name, so that it is quick."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from test_serving import Client, put_model

from mariner.engines.template import WarmTemplate
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

LOOKS = """
import os, sys, threading
import torch

def handle(data, context):
    if data is None:
        print("loading", flush=True)
        print("warned", file=sys.stderr, flush=True)
        return None
    if data[0].get("body") == "exit":
        os._exit(7)
    return [{"pid": os.getpid(), "parent": os.getppid(), "cwd": os.getcwd(), "threads": torch.threads,
             "imported_by": torch.imported_by, "main": os.environ.get("OMP_NUM_THREADS"),
             "alone": threading.active_count() == 1, "model_dir": context.system_properties["model_dir"]}]
"""
FAKE_TORCH = """
import os
imported_by = os.getpid()
threads = None

class Tensor:
    pass

def set_num_threads(count):
    global threads
    threads = count
"""
WORKERS = "minWorkers: {0}\nmaxWorkers: {0}\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    return tmp_path / "store"


@asynccontextmanager
async def serving(store: Path, *models: str, **settings: object) -> AsyncIterator[tuple[Server, Client]]:
    async with running_server(model_store=store, load_models=models, temp_dir=store.parent, **settings) as server:
        await server.models.wait_until_ready()
        client = await Client.connect(server)
        yield server, client
        await client.close()


async def look(client: Client, model: str = "looks") -> dict[str, object]:
    answer = await client.ask("GET", f"/predictions/{model}")
    assert answer.status == 200, answer.body
    found: dict[str, object] = json.loads(answer.body)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells when another process has gone
            await asyncio.sleep(0.01)


async def test_workers_share_what_the_template_has_imported(store: Path) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(2))
    async with serving(store, "looks") as (server, client):
        (version,) = server.models.registry
        template = psutil.Process(version.pool.workers[0].pid).parent()
        assert template is not None
        assert template.ppid() == os.getpid()
        assert {child.pid for child in template.children()} == {worker.pid for worker in version.pool.workers}
        seen = await look(client)
        assert (seen["parent"], seen["imported_by"]) == (template.pid, template.pid)
        assert seen["cwd"] == seen["model_dir"]
        assert seen["alone"]
    assert not template.is_running()


async def test_a_killed_worker_is_replaced_by_another_fork(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    async with serving(store, "looks") as (_, client):
        first = await look(client)
        os.kill(int(str(first["pid"])), signal.SIGKILL)
        second = await look(client)
        assert second["pid"] != first["pid"]
        assert second["parent"] == first["parent"]
    assert "it was killed by signal 9" in caplog.text


async def test_how_a_forked_worker_ended_is_told(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    async with serving(store, "looks") as (_, client):
        answer = await client.ask("POST", "/predictions/looks", b"exit", Content_Type="text/plain")
        assert (answer.status, answer.json["message"]) == (500, "Worker died.")
        await look(client)
    assert "it exited with code 7" in caplog.text


async def test_the_template_may_die(store: Path) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    async with serving(store, "looks") as (_, client):
        first = await look(client)
        os.kill(int(str(first["parent"])), signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(int(str(first["pid"]))))
        second = await look(client)
        assert second["parent"] not in {first["parent"], os.getpid()}


async def test_output_and_threads_are_the_workers_own(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    put_model(store, "other", LOOKS, WORKERS.format(1))
    async with serving(store, "looks") as (server, client):
        server.models.config.models.clear()
        before = await look(client)
        assert before["threads"] is None  # the library saw the variable when it was loaded
        os.environ["OMP_NUM_THREADS"] = "3"
        try:
            await server.models.register("other")
        finally:
            del os.environ["OMP_NUM_THREADS"]
        after = await look(client, "other")
        assert (after["main"], after["threads"], after["parent"]) == ("3", 3, before["parent"])
    lines = [(record.levelname, getattr(record, "source", ""), record.getMessage()) for record in caplog.records]
    assert ("INFO", "W-9000-looks_1.0-stdout", "loading") in lines
    assert ("WARNING", "W-9000-looks_1.0-stderr", "warned") in lines


async def test_a_model_without_pytorch_starts_by_itself(store: Path) -> None:
    source = "import os\ndef handle(data, context):\n    return data and [os.getppid()]\n"
    put_model(store, "plain", source, WORKERS.format(1))
    async with serving(store, "plain") as (_, client):
        assert (await client.ask("GET", "/predictions/plain")).json == os.getpid()


async def test_it_can_be_turned_off(store: Path) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    async with serving(store, "looks", warm_start=False) as (_, client):
        assert (await look(client))["parent"] == os.getpid()


async def test_without_pytorch_workers_start_by_themselves_and_say_what_is_missing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store.parent / "packages" / "torch.py").write_text("raise ImportError('libtorch is broken')")
    source = "import os\ndef handle(data, context):\n    # torch is not used\n    return data and [os.getppid()]\n"
    put_model(store, "plain", source, WORKERS.format(1))
    async with serving(store, "plain") as (_, client):
        assert (await client.ask("GET", "/predictions/plain")).json == os.getpid()
    assert "Workers start without a warm template" in caplog.text
    assert "libtorch is broken" in caplog.text


async def test_a_server_that_is_killed_takes_all_of_them_with_it(store: Path) -> None:
    put_model(store, "looks", LOOKS, WORKERS.format(1))
    script = """
import asyncio, sys
from pathlib import Path
from mariner.testing import running_server

async def main():
    place = Path(sys.argv[1])
    async with running_server(model_store=place / "store", load_models=("looks",), temp_dir=place) as server:
        await server.models.wait_until_ready()
        (version,) = server.models.registry
        print(version.pool.workers[0].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(store.parent), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    worker = psutil.Process(int(await server.stdout.readline()))
    template = worker.parent()
    assert template is not None
    server.kill()
    await server.wait()
    await until(lambda: not worker.is_running() and not template.is_running())


async def test_a_template_that_cannot_start_is_an_error() -> None:
    with pytest.raises(OSError, match="ended"):
        await WarmTemplate.start("/bin/false", {}, lambda stream, line: None)
