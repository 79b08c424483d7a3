"""The client's end of a connection of the HTTP fuzzer: TCP, a Unix socket, or TLS."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mariner.address import Address

READ_SIZE = 1 << 16


class Wire:
    """A connection without TLS."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX if address.path else socket.AF_INET)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()

    async def connect(self) -> None:
        address = self._address
        await self._loop.sock_connect(self._socket, address.path or ("127.0.0.1", address.port))
        if not address.path:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Closing resets, so that 200,000 connections do not wait for each other's ports.
            self._reset_on_close(on=True)

    async def send(self, piece: bytes) -> None:
        await self._loop.sock_sendall(self._socket, piece)

    async def receive(self) -> bytes:
        """What has come; nothing at the end of the connection, however it ends."""
        try:
            return await self._loop.sock_recv(self._socket, READ_SIZE)
        except ConnectionError:
            return b""

    @property
    def readable(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def finish(self) -> None:
        """Sends nothing more and reads on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Closes as an ordinary program does."""
        if not self._address.path:
            self._reset_on_close(on=False)
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _reset_on_close(self, *, on: bool) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(on), 0))


class TlsWire(Wire):
    """A connection with TLS.

    Args:
        address: of the listener.
        context: trusts its certificate.
        goodbye: ends with a message of TLS; else the socket just ends.
    """

    def __init__(self, address: Address, context: ssl.SSLContext, *, goodbye: bool) -> None:
        super().__init__(address)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._goodbye = goodbye

    async def connect(self) -> None:
        await super().connect()
        await self._until_done(self._tls.do_handshake)

    async def send(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._tls.write(rest) :]
        await super().send(self._outgoing.read())

    async def receive(self) -> bytes:
        received: bytes = await self._until_done(lambda: self._tls.read(READ_SIZE))
        return received

    def finish(self) -> None:
        if not self._goodbye:
            super().finish()
            return
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        with suppress(OSError):
            self._socket.send(self._outgoing.read())

    async def _until_done(self, step: Callable[[], Any]) -> Any:
        while (done := self._attempt(step)) is None:
            if data := self._outgoing.read():
                await super().send(data)
            data = await super().receive()
            if not data:
                return b""
            self._incoming.write(data)
        if data := self._outgoing.read():
            await super().send(data)
        return done

    def _attempt(self, step: Callable[[], Any]) -> Any:
        try:
            return step() or b""
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
