"""Stands between clients and a server and lies about a prediction, to see that the lie is found."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

__all__ = ["LIES", "lying_proxy"]

FROM, TO = 20, 21  # the predictions that are lied about, counted over all connections

Ask: TypeAlias = Callable[[], Awaitable[bytes]]
"""Passes the request on and returns the server's answer."""


class _Proxy:
    def __init__(self, port: int, lie: Callable[[_Proxy, Ask], Awaitable[bytes]]) -> None:
        self.waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self.last = b""
        self._port = port
        self._lie = lie
        self._predictions = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        try:
            while request := await _message(reader):

                async def ask(request: bytes = request) -> bytes:
                    their_writer.write(request)
                    return await _message(their_reader)

                answer = await self._answer(request, ask)
                writer.write(answer)
                if not answer:
                    break
        finally:
            their_writer.close()
            writer.close()

    async def _answer(self, request: bytes, ask: Ask) -> bytes:
        if not request.startswith(b"POST /predictions"):
            return await ask()
        self._predictions += 1
        if FROM <= self._predictions <= TO:
            return await self._lie(self, ask)
        self.last = await ask()
        return self.last


async def _message(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


@asynccontextmanager
async def lying_proxy(port: int, lie: str) -> AsyncIterator[int]:
    """A proxy in front of a port that lies as ``LIES`` says; gives its own port."""
    server = await asyncio.start_server(_Proxy(port, LIES[lie]).serve, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


# -- lies ------------------------------------------------------------------------------------------------------------


async def swap(proxy: _Proxy, ask: Ask) -> bytes:
    """Two clients get each other's answers."""
    mine = await ask()
    if proxy.waiting:
        theirs, their_turn = proxy.waiting.pop()
        their_turn.set_result(mine)
        return theirs
    my_turn: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    proxy.waiting.append((mine, my_turn))
    return await my_turn


async def drop(_: _Proxy, ask: Ask) -> bytes:
    await ask()
    return b""


async def repeat(_: _Proxy, ask: Ask) -> bytes:
    return await ask() * 2


async def replay(proxy: _Proxy, ask: Ask) -> bytes:
    """An answer that somebody else got before."""
    await ask()
    return proxy.last


async def run_twice(_: _Proxy, ask: Ask) -> bytes:
    """The client sees one answer, the server gave two."""
    await ask()
    return await ask()


async def refuse(_: _Proxy, ask: Ask) -> bytes:
    """An error for which there is no reason."""
    return (await ask()).replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 500 Internal Server Error", 1)


LIES = {lie.__name__: lie for lie in (swap, drop, repeat, replay, run_twice, refuse)}
