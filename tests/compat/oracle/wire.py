"""HTTP over a plain socket: nothing is hidden, neither casing nor chunks nor what becomes of the connection."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader

from oracle.exchange import Exchange, Framing

__all__ = ["Connection", "Received", "request_bytes"]

CLOSING = 5.0  # seconds that a server has to close a connection after it said so


@dataclass(slots=True)
class Received:
    """What came over the socket for one request."""

    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    chunks: list[bytes] | None = None
    connection: str = "open"
    interim: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def code(self) -> int:
        """The status as a number; 0 if there was none."""
        return int(self.status.partition(" ")[0] or 0)


def request_bytes(
    exchange: Exchange, host: str, body: bytes, resolve: Callable[[str], str] = str
) -> tuple[bytes, bytes]:
    """The head and the body as they are sent.

    Args:
        exchange: what is asked.
        host: and port.
        body: of this request.
        resolve: replaces placeholders.
    """
    lines = [f"{exchange.method} {resolve(exchange.path)} {exchange.version}", f"Host: {host}"]
    if exchange.content_type:
        lines.append(f"Content-Type: {exchange.content_type}")
    lines += [f"{name}: {resolve(value)}" for name, value in exchange.headers.items()]
    if exchange.framing is Framing.CHUNKED:
        lines.append("Transfer-Encoding: chunked")
        half = len(body) // 2
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    elif body:
        lines.append(f"Content-Length: {len(body)}")
    if exchange.framing is Framing.EXPECT:
        lines.append("Expect: 100-continue")
    return "\r\n".join([*lines, "", ""]).encode(), body


class Connection:
    """One connection to a server.

    Raises:
        ConnectionRefusedError: nobody listens.
    """

    def __init__(self, host: str, patience: float) -> None:
        name, _, port = host.rpartition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=patience)
        self._reader: BufferedReader = self._socket.makefile("rb")

    def send(self, head: bytes, body: bytes, framing: Framing) -> Received:
        """Sends a request; what has come back by then."""
        received = Received()
        if framing is not Framing.EXPECT:
            self._socket.sendall(head + body)
            return received
        self._socket.sendall(head)
        if self._read_status(received) and received.status.startswith("100 "):
            self._read_headers()
            received.interim.append(received.status)
            received.status = ""
            self._socket.sendall(body)
        return received

    def receive(self, received: Received, *, has_body: bool) -> None:
        """Reads the answer to the end."""
        try:
            if not received.status and not self._read_status(received):
                received.connection = "closed"
                return
            received.headers = self._read_headers()
            if has_body:
                self._read_body(received)
        except TimeoutError:
            received.connection = "silent"
        except (ConnectionError, EOFError, ValueError):
            received.connection = "cut"
        else:
            received.connection = "closed" if self._is_closed(received) else "open"

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _read_status(self, received: Received) -> bool:
        try:
            line = self._reader.readline()
        except ConnectionResetError:
            return False
        received.status = line.decode("latin-1").rstrip("\r\n").partition(" ")[2]
        return bool(line)

    def _read_headers(self) -> list[tuple[str, str]]:
        headers = []
        while line := self._reader.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        return headers

    def _read_body(self, received: Received) -> None:
        headers = {name.lower(): value for name, value in received.headers}
        if headers.get("transfer-encoding") == "chunked":
            received.chunks = []
            while size := int(self._reader.readline(), 16):
                received.chunks.append(self._read(size))
                self._reader.readline()
            self._reader.readline()
        elif "content-length" in headers:
            received.body = self._read(int(headers["content-length"]))

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _is_closed(self, received: Received) -> bool:
        announced = any(name.lower() == "connection" and value == "close" for name, value in received.headers)
        ready, _, _ = select.select([self._socket], [], [], CLOSING if announced else 0)
        if not ready:
            return False
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True
