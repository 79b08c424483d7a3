"""One bound address: opens its socket, accepts connections, ends them in order."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from mariner.address import Address, Scheme
from mariner.bodies import Arena
from mariner.errors import ConfigurationError
from mariner.http.app import App
from mariner.http.connections import Connections, Limits
from mariner.http.protocol import HttpProtocol
from mariner.logs import AccessLog

__all__ = ["HttpListener", "bind"]

_BACKLOG = 2048  # connections that may wait to be accepted; the kernel caps it at net.core.somaxconn
_SWEEP_INTERVAL = 1.0  # seconds; how exact time limits of connections are


class HttpListener:
    """Serves an app on an address.

    Args:
        address: where to listen.
        app: answers the requests.
        bound: a socket that :func:`bind` made for the address.
        limits: what one client may ask for.
        arena: shared memory for large bodies.
        clock: monotonic seconds.
        access_log: told of each answer.
    """

    def __init__(
        self,
        address: Address,
        app: App,
        *,
        bound: socket.socket | None = None,
        limits: Limits | None = None,
        arena: Arena | None = None,
        clock: Callable[[], float] = time.monotonic,
        access_log: AccessLog | None = None,
    ) -> None:
        self.address = address
        self._app = app
        self._connections = Connections(app, limits or Limits(), arena, clock, access_log)
        self._socket = bound
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accepts connections; binds first if that was not done. ``address`` then holds the true port.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        self._socket = self._socket or bind(self.address)
        if self.address.ephemeral:
            self.address = Address(self.address.scheme, self.address.host, self._socket.getsockname()[1])
        loop = asyncio.get_running_loop()
        if self.address.scheme is Scheme.UNIX:
            self._server = await loop.create_unix_server(self._connect, sock=self._socket, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(self._connect, sock=self._socket, backlog=_BACKLOG)
        self._sweeper = loop.create_task(self._sweep(), name=f"sweep {self.address}")

    def stop_listening(self) -> None:
        """Takes no new connection; each open one is told with its next answer that it is the last."""
        self._connections.closing = True
        bound, self._socket = self._socket, None
        if bound is not None:
            if self._server is not None:
                self._server.close()
                self._server = None
            bound.close()
            if self.address.scheme is Scheme.UNIX:
                with suppress(FileNotFoundError):
                    Path(self.address.path).unlink()

    def stop_accepting(self) -> None:
        """Takes no new connection and no new request on an open one; running requests go on."""
        self.stop_listening()
        self._connections.close_when_idle()

    async def drain(self, timeout: float) -> bool:
        """Waits until the running requests are answered and all connections closed.

        Returns:
            Whether that was so in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connections.empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cuts what is left, then waits for the calls that change something and must not end half-way."""
        self.stop_accepting()
        self._connections.abort()
        await self._connections.empty.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        await self._app.close()

    def _connect(self) -> HttpProtocol:
        return HttpProtocol(self._connections)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL)
            self._connections.sweep()


def bind(address: Address) -> socket.socket:
    """Takes an address; nobody can connect before a listener starts on the socket.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    if address.scheme is Scheme.HTTPS:
        raise ConfigurationError(
            f"Failed to bind to address: {address}: this version does not serve TLS itself.",
            hint="Use an http:// address and let a proxy in front of the server end TLS.",
        )
    try:
        return _bind_unix(address.path) if address.scheme is Scheme.UNIX else _bind_tcp(address.host, address.port)
    except OSError as error:
        raise ConfigurationError(
            f"Failed to bind to address: {address}: {error.strerror}.", hint=_who_is_to_blame(address, error)
        ) from error


def _bind_tcp(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name may stand for several addresses; "localhost" means the IPv4 one to most clients.
    family, kind, protocol, _, sockaddr = min(found, key=lambda row: row[0] is not socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        bound.bind(sockaddr)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        bound.bind(path)
        # Connecting needs write permission; nobody can connect before the socket listens, so this is soon enough.
        os.chmod(path, 0o660)  # noqa: PTH101 - beside bind(), which takes text
    except OSError:
        bound.close()
        raise
    return bound


def _remove_stale(path: str) -> None:
    """Removes the socket that a killed server left behind; one that somebody listens on stays."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108


def _who_is_to_blame(address: Address, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "Ports below 1024 need privileges, and sockets a directory the server may write: choose another address."
    if error.errno != errno.EADDRINUSE:
        return "The address must be one of this machine."
    if address.scheme is Scheme.UNIX:
        return "A process listens on this socket, or the path is an ordinary file: stop it or choose another path."
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == address.port and connection.pid:
                name = psutil.Process(connection.pid).name()
                return (
                    f"Process {connection.pid} ({name}) listens on port {local.port}: stop it or choose another port."
                )
    return f"Another process listens on port {address.port}: stop it or choose another port."
