"""A worker never outlives its server, whatever either is doing."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_serving import put_model

import mariner

pytestmark = pytest.mark.slow

SECONDS = 30.0  # until a process counts as stuck

# Says that it runs by opening a named pipe, then never returns and never looks at its connection.
STUCK = """
import signal
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    Path(data[0]["body"]).write_text("running")
    while True:
        signal.pause()
"""
SERVER = """
import asyncio, sys
from pathlib import Path
from mariner.auth import Listener
from mariner.testing import running_server

async def main():
    place = Path(sys.argv[1])
    async with running_server(model_store=place / "store", load_models=("stuck",), temp_dir=place) as server:
        await server.models.wait_until_ready()
        (version,) = server.models.registry
        print("listens", server.address(Listener.INFERENCE).port, version.pool.workers[0].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_worker_in_the_midst_of_a_call_dies_with_its_server(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "stuck", STUCK, "minWorkers: 1\nmaxWorkers: 1\n")
    signs = tmp_path / "signs"
    os.mkfifo(signs)
    reader = os.open(signs, os.O_RDONLY | os.O_NONBLOCK)
    home = str(Path(mariner.__file__).parents[1])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": home},
    )
    assert server.stdout is not None
    worker = -1
    try:
        said = next(line.split() for line in server.stdout if line.startswith("listens"))
        worker = os.pidfd_open(int(said[2]))
        with socket.create_connection(("127.0.0.1", int(said[1]))) as client:
            body = str(signs).encode()
            head = f"POST /predictions/stuck HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Content-Type: text/plain\r\n\r\n" + body)
            assert select.select([reader], [], [], SECONDS)[0], "the handler was not called"
            server.kill()
            assert select.select([worker], [], [], SECONDS)[0], "the worker outlived its server"
    finally:
        server.kill()
        server.communicate()
        if worker >= 0:
            if not select.select([worker], [], [], 0)[0]:
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)
        os.close(reader)
