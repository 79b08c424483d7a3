"""The server as the first process of a container: it collects what others leave behind and ends when told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_serving import put_model

SOURCES = Path(__file__).parents[2] / "src"
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
        reason="namespaces of processes need privileges that are missing here",
    ),
]

BELOW = """
import os, signal, subprocess, sys, time
from mariner.init import run_below
{main}
sys.exit(run_below(main))
"""

# The grandchild ends when its parent has: from then on it is nobody's but process 1's.
ORPHAN = """
def main():
    assert os.getppid() == 1
    reader, writer = os.pipe()
    if os.fork() == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        print(grandchild, flush=True)
        os._exit(0)
    os.wait()
    names = lambda: [name for name in os.listdir("/proc") if name.isdigit()]
    assert len(names()) == 3, names()
    os.close(writer)
    deadline = time.monotonic() + 20
    while len(names()) > 2 and time.monotonic() < deadline:
        os.sched_yield()
    print("left:", *sorted(names()), flush=True)
    return 7
"""
WAITS = """
def main():
    def end(number, frame):
        sys.exit(5)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, lambda *_: print("hung up", flush=True))
    print("ready", flush=True)
    while True:
        signal.pause()
"""
KILLED = """
def main():
    os.kill(os.getpid(), signal.SIGKILL)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def start(*command: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*UNSHARE, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCES), "TMPDIR": str(tmp_path), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def below(main: str) -> list[str]:
    return [sys.executable, "-c", BELOW.format(main=main)]


def first_process(unshare: subprocess.Popen[str]) -> int:
    """Its number outside."""
    return int(Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()[0])


def test_orphans_are_collected_and_the_exit_status_is_passed_on(start: Start) -> None:
    process = start(*below(ORPHAN))
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "left: 1 2"
    assert process.returncode == 7


def test_signals_reach_the_server(start: Start) -> None:
    process = start(*below(WAITS))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(first_process(process), signal.SIGHUP)
    assert process.stdout.readline() == "hung up\n"
    os.kill(first_process(process), signal.SIGTERM)
    assert process.wait(30) == 5


def test_a_server_that_is_killed_is_reported_as_a_shell_would(start: Start) -> None:
    assert start(*below(KILLED)).wait(30) == 128 + signal.SIGKILL


GATED = """
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    Path(data[0]["body"], "running").write_text("yes")
    return [Path(data[0]["body"], "gate").read_text()]
"""


@pytest.mark.parametrize(
    ("timeout", "status"), [("60", b"HTTP/1.1 200 "), ("0.5", b"HTTP/1.1 500 ")], ids=["enough", "not enough"]
)
def test_what_runs_when_the_stop_comes_is_answered_as_long_as_it_may_take(
    start: Start, tmp_path: Path, timeout: str, status: bytes
) -> None:
    put_model(tmp_path / "store", "gated", GATED, "minWorkers: 1\nmaxWorkers: 1\n")
    for name in ("running", "gate"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "config.properties").write_text(
        "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
        + f"drain_timeout={timeout}\nwarm_start=false\n"
    )
    command = str(Path(sys.executable).parent / "torchserve")
    process = start(command, "--foreground", "--ncs", "--model-store", "store", "--models", "gated")
    assert process.stdout is not None
    lines = iter(process.stdout)
    port = int(next(line for line in lines if "Inference API bind to:" in line).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        body = str(tmp_path).encode()
        head = f"POST /predictions/gated HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Content-Type: text/plain\r\n\r\n" + body)
        assert (tmp_path / "running").read_text() == "yes"
        os.kill(first_process(process), signal.SIGTERM)
        assert any("Stopping: running requests are answered first." in line for line in lines)
        if status.endswith(b"200 "):
            (tmp_path / "gate").write_text("answered")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(status)
    assert process.wait(30) == 0


def test_the_server_itself_runs_below_and_stops_in_order(start: Start, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "config.properties").write_text(
        "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
    )
    command = str(Path(sys.executable).parent / "torchserve")
    process = start(command, "--foreground", "--ncs", "--model-store", "store")
    assert process.stdout is not None
    lines = iter(process.stdout)
    assert "Model server started.\n" in lines
    assert (tmp_path / ".model_server.pid").read_text() != "1"
    os.kill(first_process(process), signal.SIGTERM)
    assert any(line.endswith("Torchserve stopped.\n") for line in lines)
    assert process.wait(30) == 0
    assert not (tmp_path / ".model_server.pid").exists()
