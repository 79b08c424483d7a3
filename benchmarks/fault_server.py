"""A server whose faults are measured: started as TorchServe is, asked and looked at by its public APIs."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import environment_bin, installed_version
from processes import ServerProcess, free_port
from scenarios import MARINER, TORCHSERVE

__all__ = ["BINS", "DISTRIBUTIONS", "FaultServer", "Reply", "running", "version"]

BINS = {MARINER: Path(sys.executable).parent, TORCHSERVE: environment_bin(TORCHSERVE)}
DISTRIBUTIONS = {MARINER: "mariner-serve", TORCHSERVE: "torchserve"}
START_SECONDS = 60.0
READY_SECONDS = 60.0
PATIENCE = 30.0  # seconds that a client waits unless it says otherwise
POLL_SECONDS = 0.05

FAULTY = (Path(__file__).parent / "models" / "faulty.py").read_text()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client got; times are seconds on one clock, ``status`` is 0 if nothing came."""

    begun: float
    ended: float
    status: int
    body: bytes
    number: int = 0

    @property
    def value(self) -> Any:
        with suppress(ValueError):
            return json.loads(self.body)
        return None

    @property
    def right(self) -> bool:
        """A good answer to this request and no other."""
        value = self.value
        return self.status == 200 and isinstance(value, dict) and value.get("doubled") == 2 * self.number

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def reason(self) -> str:
        """Status and words, as the client gets them."""
        if not self.status:
            return self.body.decode()
        value = self.value if isinstance(self.value, dict) else {}
        words = [str(value[key]) for key in ("message", "hint") if value.get(key)]
        return f"{self.status} {' '.join(words)}".strip()


class FaultServer:
    """A running server."""

    def __init__(self, peer: str, folder: Path) -> None:
        self.peer = peer
        self.folder = folder
        self.store = folder / "store"
        self._numbers = itertools.count(1)
        self._ports = {kind: free_port() for kind in ("inference", "management", "metrics")}
        for name in ("store", "tmp"):
            (folder / name).mkdir(parents=True)
        self.process = ServerProcess(self._command(), folder, self._environment())

    def _command(self) -> list[str]:
        settings: dict[str, object] = {
            **{f"{kind}_address": f"http://127.0.0.1:{port}" for kind, port in self._ports.items()},
            "grpc_inference_port": free_port(),
            "grpc_management_port": free_port(),
        }
        config = self.folder / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        flags = ["--ncs", "--disable-token-auth", "--enable-model-api", "--ts-config", str(config)]
        return [str(BINS[self.peer] / "torchserve"), "--foreground", "--model-store", str(self.store), *flags]

    def _environment(self) -> dict[str, str]:
        ours = ("PYTHONPATH", "VIRTUAL_ENV", "JAVA_TOOL_OPTIONS")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        return {name: value for name, value in kept.items() if not name.startswith(("TS_", "MARINER_"))} | {
            "PATH": f"{BINS[self.peer]}{os.pathsep}{os.environ['PATH']}",
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.folder / "tmp")),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(self.folder / "logs")),
        }

    async def wait_until_up(self) -> None:
        """Waits for the first answer.

        Raises:
            RuntimeError: there is none; the message carries the last lines.
        """
        deadline = time.monotonic() + START_SECONDS
        while (await self.call("GET", "/ping", kind="inference", limit=2.0)).status != 200:
            if not self.process.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.peer} did not start:\n{self.process.last_lines(30)}")
            await asyncio.sleep(POLL_SECONDS)

    # -- models -------------------------------------------------------------------------------------------------------

    def pack(self, name: str, source: str = FAULTY, **config: object) -> None:
        """Puts an archive into the model store."""
        model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", "configFile": "model-config.yaml"}
        with zipfile.ZipFile(self.store / f"{name}.mar", "w") as archive:
            manifest = {"createdOn": "", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            archive.writestr("handler.py", source)
            archive.writestr("model-config.yaml", "".join(f"{key}: {value}\n" for key, value in config.items()))

    async def register(self, name: str, limit: float = PATIENCE, **config: object) -> Reply:
        """Packs and registers a model and waits for its workers."""
        config = {"minWorkers": 1, "maxWorkers": 1, **config}
        source = str(config.pop("source", FAULTY))
        self.pack(name, source, **config)
        return await self.call("POST", f"/models?url={name}.mar&synchronous=true", limit=limit)

    async def serve(self, name: str, **config: object) -> None:
        """Registers a model that must load, and waits for its first worker.

        Raises:
            RuntimeError: it does not.
        """
        reply = await self.register(name, READY_SECONDS, **config)
        if reply.status != 200:
            raise RuntimeError(f"{name} does not load: {reply.reason}")
        await self.until_ready(name)

    async def unregister(self, name: str) -> None:
        await self.call("DELETE", f"/models/{name}")

    async def workers(self, name: str) -> list[int]:
        """Process ids of the workers that are ready."""
        reply = await self.call("GET", f"/models/{name}")
        found = reply.value[0]["workers"] if reply.status == 200 else []
        return [int(worker["pid"]) for worker in found if worker["status"] == "READY" and int(worker["pid"]) > 0]

    async def until_ready(self, name: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not await self.workers(name):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.peer}: {name} has no worker:\n{self.process.last_lines(30)}")
            await asyncio.sleep(POLL_SECONDS)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def predict(self, model: str, *, limit: float = PATIENCE, says: bool = False, **told: object) -> Reply:
        """A prediction on a connection of its own; who gets nothing within ``limit`` seconds leaves.

        Args:
            model: its name.
            limit: seconds.
            says: the limit is also told to the server, in a header that it may know.
            told: what the handler is to do.
        """
        number = next(self._numbers)
        body = json.dumps({"number": number, **told}).encode()
        headers = f"X-Request-Timeout-Ms: {limit * 1e3:.0f}\r\n" if says else ""
        reply = await self.call("POST", f"/predictions/{model}", body, kind="inference", limit=limit, headers=headers)
        return Reply(reply.begun, reply.ended, reply.status, reply.body, number)

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        kind: str = "management",
        limit: float = PATIENCE,
        headers: str = "",
    ) -> Reply:
        """One request on a connection of its own."""
        begun = time.monotonic()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}"
        if body:  # TorchServe reads an empty body that claims to be JSON
            head += "Content-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[kind])
                writer.write(head.encode() + body)
                status, answer = await _read_answer(reader)
        except TimeoutError:
            status, answer = 0, f"nothing within {limit:g} s".encode()
        except (OSError, EOFError, ValueError) as problem:
            status, answer = 0, f"no answer: {type(problem).__name__}".encode()
        finally:
            if writer is not None:
                writer.transport.abort()  # who leaves early does not say goodbye
        return Reply(begun, time.monotonic(), status, answer)

    def stop(self) -> subprocess.Popen[bytes]:
        """Asks it to stop, as an operator does."""
        words = [str(BINS[self.peer] / "torchserve"), "--stop"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(words, cwd=self.folder, env=self._environment(), **quiet)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    _, found, rest = head.partition("\r\ncontent-length:")
    if found:
        return status, await reader.readexactly(int(rest.partition("\r\n")[0]))
    return status, await reader.read()


@contextmanager
def running(peer: str, folder: Path) -> Iterator[FaultServer]:
    """Starts a server in an empty folder and ends it at the end, whatever it is doing."""
    server = FaultServer(peer, folder)
    try:
        yield server
    finally:
        for worker in server.process.tree():  # those that were stopped would not end
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        server.process.stop()


def version(peer: str) -> str:
    return installed_version(BINS[peer] / "python", DISTRIBUTIONS[peer])
