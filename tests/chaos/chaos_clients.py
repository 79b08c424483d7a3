"""Clients: patient, slow, hurried and rude ones. Each tells the model what it sent and what it saw."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import struct
import time
from collections import defaultdict
from typing import Any, NamedTuple

from chaos_model import Kind, Model, Seen, Sent
from chaos_server import ChaosServer
from test_serving import Answer, Client

__all__ = ["Clients", "Question"]

PATIENCE = 45.0  # seconds; who waits longer gets no answer
IDLE = 5.0  # seconds after which a connection is not used again: the server might be closing it
LONG_TEXT = 300_000  # characters; such a body goes through shared memory
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of a goodbye

_ENDS = (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError)


class Question(NamedTuple):
    """A request whose right answer is known."""

    body: bytes
    answer: dict[str, Any]

    def by(self, *versions: str) -> tuple[dict[str, Any], ...]:
        """What these versions of a model answer."""
        return tuple({**self.answer, "version": version} for version in versions)


class _Connection(Client):
    """Skips interim answers, which a client that has half-closed may get."""

    async def head(self) -> tuple[int, dict[str, str]]:
        status, headers = await super().head()
        while status == 100:
            status, headers = await super().head()
        return status, headers


class Clients:
    """All clients of a run.

    Args:
        server: whom they ask.
        model: whom they tell.
        rng: decides what they ask.
        port: of the inference listener, if it is not the server's own.
    """

    def __init__(self, server: ChaosServer, model: Model, rng: random.Random, port: int | None = None) -> None:
        self.model = model
        self._server = server
        self._rng = rng
        self._ports = server.ports | ({"inference": port} if port else {})
        self._free: dict[str, list[tuple[float, Client]]] = defaultdict(list)
        self._number = 0

    @staticmethod
    def now() -> float:
        """Seconds on the clock of the run, which does not jump."""
        return time.monotonic()

    def question(self, **told: Any) -> Question:
        """A new one; ``told`` is for the handler: ``fail``, ``seconds``."""
        self._number += 1
        rng = self._rng
        length = rng.randrange(LONG_TEXT) if rng.random() < 0.03 else rng.randrange(200)
        text = rng.randbytes((length + 1) // 2).hex()
        addends = [rng.randrange(-1000, 1000) for _ in range(rng.randrange(8))]
        digest = hashlib.sha256(text.encode()).hexdigest()
        body = json.dumps({"number": self._number, "addends": addends, "text": text, **told}).encode()
        return Question(body, {"number": self._number, "sum": sum(addends), "digest": digest})

    # -- patient ones -------------------------------------------------------------------------------------------------

    async def predict(
        self,
        model: str,
        kind: Kind = Kind.PREDICT,
        *,
        version: str = "",
        headers: dict[str, str] | None = None,
        **told: Any,
    ) -> Seen:
        """Asks a model and waits."""
        question = self.question(**told)
        path = f"/predictions/{model}" + (f"/{version}" if version else "")
        right = question.by(version or "1.0", *(("2.0",) if model == "versions" and not version else ()))
        return await self.ask(kind, model, "POST", path, question.body, right, headers)

    async def manage(self, kind: Kind, model: str, method: str, path: str) -> Seen:
        """Calls the management API and waits."""
        return await self.ask(kind, model, method, path, listener="management")

    async def ask(
        self,
        kind: Kind,
        model: str,
        method: str,
        path: str,
        body: bytes = b"",
        right: tuple[Any, ...] = (),
        headers: dict[str, str] | None = None,
        listener: str = "inference",
    ) -> Seen:
        """Sends a request on a connection that is free, or a new one, and waits for the answer."""
        sent = self.model.send(kind, model, self.now(), right)
        client: Client | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                client = await self._connection(listener)
                await client.send(method, path, body, Content_Type="application/json", **(headers or {}))
                answer = await client.answer()
        except _ENDS as problem:
            return self._unanswered(sent, client, problem)
        seen = self._saw(sent, client, answer)
        if answer.headers.get("connection", "").lower() == "close":
            client.writer.close()
        else:
            self._free[listener].append((self.now(), client))
        return seen

    async def _connection(self, listener: str) -> Client:
        free = self._free[listener]
        while free:
            since, client = free.pop()
            if self.now() - since < IDLE and not client.reader.at_eof():
                return client
            await self._bid_farewell(client)
        return await self._connect(listener)

    async def _connect(self, listener: str = "inference") -> Client:
        return _Connection(*await asyncio.open_connection("127.0.0.1", self._ports[listener]))

    def _saw(self, sent: Sent, client: Client, answer: Answer) -> Seen:
        extra = bytes(client.reader._buffer)  # type: ignore[attr-defined]  # there is no public way to look
        id_ = answer.headers.get("x-request-id", "")
        seen = Seen(self.now(), answer.status, answer.body, id_, extra)
        self.model.see(sent, seen)
        return seen

    def _unanswered(self, sent: Sent, client: Client | None, problem: BaseException) -> Seen:
        phrase = f", last head {client.phrase!r}" if client is not None and client.phrase else ""
        waited = f"{type(problem).__name__} after {self.now() - sent.at:.1f} s: {problem}{phrase}"
        seen = Seen(self.now(), 0, note=waited)
        self.model.see(sent, seen)
        if client is not None:
            client.writer.close()
        return seen

    async def close(self) -> None:
        """Closes the connections; nothing may be left on them."""
        for free in self._free.values():
            while free:
                await self._bid_farewell(free.pop()[1])

    async def _bid_farewell(self, client: Client) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                if not client.reader.at_eof():
                    client.writer.write_eof()
                if rest := await client.reader.read():
                    self.model.violate(f"bytes that nobody asked for: {rest[:200]!r}")
        except _ENDS as problem:
            self.model.violate(f"a connection does not end: {type(problem).__name__} {problem}")
        client.writer.close()

    # -- others -------------------------------------------------------------------------------------------------------

    async def trickle(self, model: str) -> None:
        """Sends a request bit by bit."""
        question = self.question()
        sent = self.model.send(Kind.PREDICT, model, self.now(), question.by("1.0"))
        client: Client | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                client = await self._connect()
                data = _request(model, question.body)
                size = max(1, len(data) // self._rng.randrange(2, 12))
                for start in range(0, len(data), size):
                    client.writer.write(data[start : start + size])
                    await client.writer.drain()
                    await asyncio.sleep(self._rng.random() * 0.05)
                self._saw(sent, client, await client.answer())
        except _ENDS as problem:
            self._unanswered(sent, client, problem)
        else:
            client.writer.close()

    async def half_close(self, model: str) -> None:
        """Sends a request and says that no other will come."""
        question = self.question()
        sent = self.model.send(Kind.PREDICT, model, self.now(), question.by("1.0"))
        client: Client | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                client = await self._connect()
                client.writer.write(_request(model, question.body))
                client.writer.write_eof()
                self._saw(sent, client, await client.answer())
        except _ENDS as problem:
            self._unanswered(sent, client, problem)
        else:
            await self._bid_farewell_after_eof(client)

    async def _bid_farewell_after_eof(self, client: Client) -> None:
        async with asyncio.timeout(PATIENCE):
            if rest := await client.reader.read():
                self.model.violate(f"bytes that nobody asked for: {rest[:200]!r}")
        client.writer.close()

    async def leave_early(self, model: str) -> None:
        """Goes with a reset before the request is complete."""
        question = self.question()
        sent = self.model.send(Kind.PREDICT, model, self.now())
        await self._say_and_go(sent, _request(model, question.body)[: -self._rng.randrange(1, len(question.body))])

    async def leave(self, model: str) -> None:
        """Goes with a reset while the request waits or runs, or while its answer is on the way."""
        sent = self.model.send(Kind.PREDICT, model, self.now())
        await self._say_and_go(sent, _request(model, self.question(seconds=0.02).body))

    async def _say_and_go(self, sent: Sent, data: bytes) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                client = await self._connect()
                client.writer.write(data)
                await client.writer.drain()
                await asyncio.sleep(self._rng.random() * 0.05)
        except _ENDS as problem:
            self._unanswered(sent, None, problem)
            return
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        client.writer.transport.abort()
        self.model.leave(sent)


def _request(model: str, body: bytes) -> bytes:
    head = f"POST /predictions/{model} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
