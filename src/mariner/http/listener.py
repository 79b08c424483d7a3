"""One bound address: opens its socket, accepts connections, ends them in order."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from mariner.address import Address, Scheme
from mariner.bodies import Arena
from mariner.errors import ConfigurationError
from mariner.http.app import App
from mariner.http.connections import Connections, Limits
from mariner.http.protocol import HttpProtocol
from mariner.http.tls import TlsTransport
from mariner.logs import AccessLog

__all__ = ["Binding", "HttpListener", "bind"]

_BACKLOG = 2048  # connections that may wait to be accepted; the kernel caps it at net.core.somaxconn
_MAX_PATH = 107  # bytes of a socket's path; the size of sun_path
_SWEEP_INTERVAL = 1.0  # seconds; how exact time limits of connections are


class HttpListener:
    """Serves an app on an address.

    Args:
        address: where to listen.
        app: answers the requests.
        bound: what :func:`bind` took for the address.
        limits: what one client may ask for.
        arena: shared memory for large bodies.
        tls: key, certificate and rules of an ``https`` address.
        clock: monotonic seconds.
        access_log: told of each answer.
    """

    def __init__(
        self,
        address: Address,
        app: App,
        *,
        bound: Binding | None = None,
        limits: Limits | None = None,
        arena: Arena | None = None,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        access_log: AccessLog | None = None,
    ) -> None:
        assert (tls is not None) is (address.scheme is Scheme.HTTPS)
        self.address = address
        self._app = app
        self._tls = tls
        self._connections = Connections(app, limits or Limits(), arena, clock, access_log)
        self._bound = bound
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accepts connections; binds first if that was not done. ``address`` then holds the true port.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        self._bound = self._bound or bind(self.address)
        self.address = self._bound.address
        loop = asyncio.get_running_loop()
        if self.address.scheme is Scheme.UNIX:
            self._server = await loop.create_unix_server(self._connect, sock=self._bound.socket, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(self._connect, sock=self._bound.socket, backlog=_BACKLOG)
        self._sweeper = loop.create_task(self._sweep(), name=f"sweep {self.address}")

    def stop_listening(self) -> None:
        """Takes no new connection; each open one is told with its next answer that it is the last."""
        self._connections.closing = True
        bound, self._bound = self._bound, None
        if bound is not None:
            if self._server is not None:
                self._server.close()
                self._server = None
            bound.release()

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

    def _connect(self) -> asyncio.BufferedProtocol:
        protocol = HttpProtocol(self._connections)
        return protocol if self._tls is None else TlsTransport(self._tls, self._connections.buffer, protocol)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL)
            self._connections.sweep()


class Binding:
    """An address that was taken: nobody else gets it, and nobody is served before a listener starts on it.

    Args:
        address: as it was asked for.
        bound: its socket.
        file: which file the socket is, if it is one.

    Attributes:
        address: with its true port.
        socket: to listen on.
    """

    def __init__(self, address: Address, bound: socket.socket, file: os.stat_result | None = None) -> None:
        self.address = replace(address, port=bound.getsockname()[1]) if address.ephemeral else address
        self.socket = bound
        self._file = file

    def release(self) -> None:
        """Gives the address back; may be called twice. A file that somebody else has put in place stays."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(file, os.stat(self.address.path)):  # noqa: PTH116 - beside samestat
                    Path(self.address.path).unlink()
        self.socket.close()


def bind(address: Address) -> Binding:
    """Takes an address.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    try:
        if address.scheme is Scheme.UNIX:
            return _bind_unix(address)
        return Binding(address, _bind_tcp(address.host, address.port))
    except OSError as error:
        raise ConfigurationError(
            f"Failed to bind to address: {address}: {error.strerror or error}.", hint=_who_is_to_blame(address, error)
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


def _bind_unix(address: Address) -> Binding:
    path = Path(address.path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        bound.bind(address.path)
        file = path.stat()
        # Connecting needs write permission, and is possible from listen() on. Who may connect counts as the user of
        # this machine, so it is the owner, and the group if the umask says so.
        path.chmod(stat.S_IMODE(file.st_mode) & 0o660)
        bound.listen(_BACKLOG)  # a socket that nobody listens on looks left behind to the next server
    except OSError:
        bound.close()
        raise
    return Binding(address, bound, file)


def _remove_stale(path: Path) -> None:
    """Removes the socket that a killed server left behind; one that somebody listens on stays."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # somebody who is too busy to accept is there all the same
            with suppress(BlockingIOError):
                if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                    path.unlink()


def _who_is_to_blame(address: Address, error: OSError) -> str:
    if address.scheme is Scheme.UNIX and len(os.fsencode(address.path)) > _MAX_PATH:
        return f"The path of a Unix socket has at most {_MAX_PATH} bytes."
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
