"""An HTTP server for downloads that answers by the letter, mistakes included."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\narchive"


class Remote:
    """An HTTP server that answers each connection with the next piece of a script.

    A piece that ends with ``...`` keeps the connection open after it.
    """

    def __init__(self, *script: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._closing = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def url(self, path: str = "/m.mar") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._closing = True
        with socket.socket() as wake:
            wake.connect_ex(("127.0.0.1", self.port))
        self._thread.join()
        for connection in [*self._open, self._listener]:
            connection.close()

    def _serve(self) -> None:
        for piece in self._script:
            connection, _ = self._listener.accept()
            self._open.append(connection)
            if self._closing:
                return
            with suppress(OSError):  # the client has given up, as it should
                self._answer(connection, piece)

    def _answer(self, connection: socket.socket, piece: bytes) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
            self._open.append(connection)
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(65536)
            if not received:
                return
            request += received
        self.requests.append(request)
        connection.sendall(piece.removesuffix(b"..."))
        if not piece.endswith(b"..."):
            connection.close()
