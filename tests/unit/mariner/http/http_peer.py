"""Both sides of an HTTP listener under test: a model server that answers as told, and a client that sends raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mariner.bodies import Slot
from mariner.config import Config
from mariner.description import Metadata
from mariner.errors import MarinerError
from mariner.jobs import Job, Outcome, Reply, Request, unpack_headers
from mariner.lifecycle import Phase, Readiness
from mariner.model_server import Registered
from mariner.model_settings import Explained, RegisterOptions

Behaviour = Callable[[Job], None]


@dataclass
class FakeMetrics:
    statuses: list[int] = field(default_factory=list)
    exposed: list[Collection[str] | None] = field(default_factory=list)

    def requests_finished(self, status: int) -> None:
        self.statuses.append(status)

    def expose(self, names: Collection[str] | None = None) -> str:
        self.exposed.append(names)
        return "# HELP up up\n"


def echo(job: Job) -> None:
    """Answers at once with the body, wherever it lies."""
    part = job.request.parts[0]
    body = bytes(job.slot.view) if job.slot is not None else part.value
    assert isinstance(body, (bytes, bytearray))
    job.end(Reply(1, body))


class FakeModelServer:
    """Keeps what it was asked; ``behaviour`` decides what becomes of a job, ``error`` is raised instead."""

    def __init__(self) -> None:
        self.metrics = FakeMetrics()
        self.behaviour: Behaviour = echo
        self.error: Exception | None = None
        self.jobs: list[Job] = []
        self.submitted: list[tuple[str, str | None, float | None]] = []
        self.arrived = asyncio.Event()
        self.calls: list[tuple[Any, ...]] = []
        self.config = Config()
        self.is_healthy = True
        self.server_condition: Readiness | Phase = Readiness.READY
        self.phase = Phase.SERVING
        self.state = Readiness.READY
        self.initial: str | None = None
        self.time = 0.0
        self.models: list[tuple[str, str]] = []
        self.registered = Registered("m", "1.0", 0, ready=True)
        self.scaled = True
        self.gate: asyncio.Event | None = None

    def submit(
        self,
        name: str,
        version: str | None,
        request: Request,
        deliver: Callable[[Outcome], None],
        *,
        slot: Slot | None = None,
        timeout: float | None = None,
        alone: bool = False,
    ) -> Job:
        if self.error is not None:
            raise self.error
        self.submitted.append((name, version, timeout))
        job = Job(request, deliver, slot=slot, alone=alone)
        self.jobs.append(job)
        self.arrived.set()
        self.behaviour(job)
        return job

    async def _call(self, *call: Any) -> None:
        self.calls.append(call)
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def register(
        self, url: str, options: RegisterOptions | None = None, *, synchronous: bool = True
    ) -> Registered:
        await self._call("register", url, options, synchronous)
        return self.registered

    async def unregister(self, name: str, version: str | None = None) -> None:
        await self._call("unregister", name, version)

    async def scale(
        self, name: str, version: str | None, min_workers: int, max_workers: int, *, synchronous: bool
    ) -> bool:
        await self._call("scale", name, version, min_workers, max_workers, synchronous)
        return self.scaled

    def set_default(self, name: str, version: str) -> None:
        self.calls.append(("set_default", name, version))
        if self.error is not None:
            raise self.error

    def list_models(self) -> Sequence[tuple[str, str]]:
        return self.models

    async def describe(
        self, name: str, version: str | None, *, all_versions: bool = False, customized: bool = False
    ) -> list[dict[str, Any]]:
        await self._call("describe", name, version, all_versions, customized)
        return [{"modelName": name, "modelVersion": version or "1.0"}]

    def explain(self, name: str, version: str | None) -> list[Explained]:
        self.calls.append(("explain", name, version))
        return [Explained("batchSize", "4", "API")]

    def healthy(self) -> bool:
        return self.is_healthy

    def condition(self) -> Readiness | Phase:
        return self.server_condition

    def now(self) -> float:
        return self.time

    def only_initial_model(self) -> str | None:
        return self.initial

    def serves(self, name: str, version: str | None) -> bool:
        self.calls.append(("serves", name, version))
        if self.error is not None:
            raise self.error
        return self.state is Readiness.READY

    def readiness(self, name: str, version: str | None) -> Readiness:
        self.calls.append(("readiness", name, version))
        if self.error is not None:
            raise self.error
        return self.state

    def metadata(self, name: str, version: str | None) -> Metadata:
        self.calls.append(("metadata", name, version))
        if self.error is not None:
            raise self.error
        return Metadata(name, ["1.0", "2.0"], "pytorch_pt2")

    # -- for tests ----------------------------------------------------------------------------------------------------

    def later(self, behaviour: Behaviour) -> None:
        """Lets jobs be answered in the next turn of the loop, as real ones are: never before ``submit`` returns."""
        self.behaviour = lambda job: asyncio.get_running_loop().call_soon(behaviour, job) and None

    async def job(self) -> Job:
        """The next job that arrives."""
        await self.arrived.wait()
        self.arrived.clear()
        return self.jobs[-1]

    def forget(self) -> None:
        """Lets go of the error, and with it of the frames it went through and the bodies they hold."""
        self.error = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What the handler of the last job sees."""
        return unpack_headers(self.jobs[-1].request.headers)

    @property
    def parts(self) -> list[tuple[str, str, object]]:
        return [(name, kind, value) for name, kind, value in self.jobs[-1].request.parts]


def hold(_job: Job) -> None:
    """Answers nothing; the test does."""


def fail(error: MarinerError) -> Behaviour:
    return lambda job: job.end(error)


@dataclass(frozen=True)
class Answer:
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes
    chunks: tuple[bytes, ...] = ()


class Client:
    """One connection that sends what it is told, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes, *, head_only: bool = False) -> Answer:
        await self.send(data)
        return await self.answer(head_only=head_only)

    async def answer(self, *, head_only: bool = False) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, status, phrase = head[0].split(" ", 2)
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), "a header came twice"
        if head_only or status in {"100", "204", "304"}:
            return Answer(int(status), phrase, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                chunks.append((await self.reader.readexactly(size + 2))[:-2])
            assert await self.reader.readexactly(2) == b"\r\n"
            return Answer(int(status), phrase, headers, b"".join(chunks), tuple(chunks))
        if "content-length" in headers:
            return Answer(int(status), phrase, headers, await self.reader.readexactly(int(headers["content-length"])))
        return Answer(int(status), phrase, headers, await self.reader.read())

    async def closed(self) -> bool:
        """Waits for the end of the connection; True if nothing came before it."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.transport.abort()  # unlike close(), waits for nobody to read what is unsent
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def post(path: str = "/predictions/m", body: bytes = b"", *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]).encode("latin-1") + b"\r\n\r\n"


async def until(condition: Callable[[], object]) -> None:
    """Lets the event loop run until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)
