"""SIGHUP: a server takes changed archives without losing a request, and goes with the terminal it was started from."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_serving import Client

COMMAND = str(Path(sys.executable).parent / "torchserve")
CLIENTS = 32

pytestmark = pytest.mark.slow


def pack(store: Path, answer: str, version: str = "1.0") -> None:
    """Writes an archive beside its place and moves it there."""
    model = {"modelName": "says", "modelVersion": version, "handler": "handler.py", "configFile": "c.yaml"}
    with zipfile.ZipFile(store / "says.new", "w") as file:
        file.writestr("handler.py", f"def handle(data, context):\n    return data and [{answer!r}] * len(data)\n")
        file.writestr("c.yaml", "minWorkers: 1\nmaxWorkers: 1\n")
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
    (store / "says.new").replace(store / "says.mar")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    pack(tmp_path / "store", "old")
    (tmp_path / "config.properties").write_text(
        "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
    )
    return tmp_path


class Running:
    """A server of the command, in the foreground, and its lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout = process.stdout
        self.seen: list[str] = []

    def until(self, text: str) -> str:
        for line in self.stdout:
            self.seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r} in:\n{''.join(self.seen)}")

    def port(self) -> int:
        return int(self.until("Inference API bind to:").rpartition(":")[2])

    async def client(self, port: int) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", port))


@pytest.fixture
def running(place: Path) -> Iterator[Running]:
    process = subprocess.Popen(
        [COMMAND, "--foreground", "--ncs", "--model-store", "store", "--models", "says.mar"],
        cwd=place,
        env={**os.environ, "TMPDIR": str(place), "MARINER_WARM_START": "false"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield Running(process)
    process.terminate()
    process.communicate(timeout=30)


async def test_no_request_of_32_clients_fails_while_an_archive_is_replaced(running: Running, place: Path) -> None:
    port = running.port()
    await asyncio.to_thread(running.until, "is ready after")
    answers: list[list[tuple[int, bytes]]] = [[] for _ in range(CLIENTS)]
    replaced, busy = asyncio.Event(), asyncio.Event()

    async def ask_on(mine: list[tuple[int, bytes]]) -> None:
        client = await running.client(port)
        after = 0
        while after < 20:  # requests sent when the log has said that the version is replaced
            after += replaced.is_set()
            answer = await client.ask("POST", "/predictions/says", b"x")
            mine.append((answer.status, answer.body))
            if len(mine) == 20:
                busy.set()
        await client.close()

    async with asyncio.timeout(60):
        tasks = [asyncio.create_task(ask_on(mine)) for mine in answers]
        await busy.wait()
        pack(place / "store", "new")
        os.kill(running.process.pid, signal.SIGHUP)
        line = await asyncio.to_thread(running.until, "is replaced")
        replaced.set()
        await asyncio.gather(*tasks)
    assert "Model says version 1.0 is replaced by version 1.0 after" in line
    for mine in answers:
        assert {status for status, _ in mine} == {200}
        bodies = [body for _, body in mine]
        switch = bodies.index(b"new")
        assert bodies == [b"old"] * switch + [b"new"] * (len(bodies) - switch)
        assert bodies[-20:] == [b"new"] * 20
    assert sum(mine[0][1] == b"old" for mine in answers) == CLIENTS


async def test_a_damaged_archive_leaves_the_model_as_it_is(running: Running, place: Path) -> None:
    port = running.port()
    await asyncio.to_thread(running.until, "is ready after")
    (place / "store" / "says.mar").write_bytes(b"PK\x03\x04 torn off")
    os.kill(running.process.pid, signal.SIGHUP)
    line = await asyncio.to_thread(running.until, "could not be reloaded")
    assert "Model says version 1.0 could not be reloaded: Failed to save model: says.mar" in line
    client = await running.client(port)
    assert (await client.ask("POST", "/predictions/says", b"x")).body == b"old"
    await client.close()


async def test_a_new_version_answers_by_its_number_and_as_the_default(running: Running, place: Path) -> None:
    port = running.port()
    await asyncio.to_thread(running.until, "is ready after")
    pack(place / "store", "newer", version="2.0")
    os.kill(running.process.pid, signal.SIGHUP)
    await asyncio.to_thread(running.until, "is replaced by version 2.0")
    client = await running.client(port)
    answers = [await client.ask("POST", f"/predictions/says{version}", b"x") for version in ("", "/2.0", "/1.0")]
    assert [answer.status for answer in answers] == [200, 200, 404]
    assert answers[0].body == b"newer"
    await client.close()


def test_a_server_in_the_foreground_goes_with_its_terminal(place: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [COMMAND, "--foreground", "--ncs", "--model-store", "store"],
        cwd=place,
        env={**os.environ, "TMPDIR": str(place)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,  # noqa: PLW1509 - this process has no threads
    )
    os.close(theirs)
    text = b""
    while b"Model server started." not in text:
        text += os.read(ours, 4096)
    process.send_signal(signal.SIGHUP)  # by a person, the terminal being there
    while b"No archive has changed" not in text:
        text += os.read(ours, 4096)
    assert process.poll() is None
    os.close(ours)
    assert process.wait(30) == 0
