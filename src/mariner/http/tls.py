"""TLS on one connection: the protocol of the socket on one side, the transport of an HTTP protocol on the other.

What asyncio brings (``create_server(ssl=...)``) says nothing of connections whose handshake has not ended, hides how
much of an answer the client has not taken, cuts what is unsent when the shutdown takes too long, and drops the answer
of a client that has finished sending. Here the HTTP protocol has the connection from its first byte on, so that its
limits, deadlines and way of closing are the same with TLS and without. The cryptography is OpenSSL's
(:class:`ssl.SSLObject`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from contextlib import suppress
from enum import IntEnum
from typing import Any, cast

from mariner.http.protocol import HttpProtocol

__all__ = ["TlsTransport"]

logger = logging.getLogger(__name__)

_HANDSHAKE_RECORD = 22  # the first byte of every TLS connection; no request line begins with it
_FLUSH_SIZE = 262_144  # encrypted bytes that are handed on while a long answer is still being encrypted
_HTTPS_ONLY = b'{\n  "status": "This TorchServe instance only accepts HTTPS requests"\n}\n'
_REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_HTTPS_ONLY), _HTTPS_ONLY)
)


class _State(IntEnum):
    NEW = 0  # no byte has come
    HANDSHAKE = 1
    OPEN = 2
    ENDED = 3  # nothing more is written; what comes is dropped


_NEW, _HANDSHAKE, _OPEN, _ENDED = _State  # reading a member off its class costs ten times as much


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection.

    A connection that is closed before the handshake ends, because it took too long or there are too many, gets no
    answer: nobody could read it.

    Args:
        context: key, certificate and rules of the listener.
        buffer: encrypted bytes are received into it; may be shared by all connections, and with the protocol.
        protocol: what the client says is handed to it decrypted.
    """

    def __init__(self, context: ssl.SSLContext, buffer: memoryview, protocol: HttpProtocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._buffer = buffer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = _NEW
        self._socket: asyncio.Transport | None = None
        self._fd = -1
        self._paused = False  # reading
        self._eof = False  # the client sends nothing more
        self._eof_told = False  # the protocol knows
        self._broken = False  # what it sent is no TLS

    # -- towards the socket ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self._protocol.connection_made(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._state = _ENDED
        self._socket = None
        self._protocol.connection_lost(error)

    def eof_received(self) -> bool:
        if self._state is _OPEN:
            self._eof = True
            self._deliver()  # what was left over while reading was paused comes first
        return self._state is _OPEN

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is _ENDED or self._eof:
            return
        data = self._buffer[:nbytes]
        if self._state is _NEW:
            if data[0] != _HANDSHAKE_RECORD:
                self._refuse()
                return
            self._state = _HANDSHAKE
        self._incoming.write(data)
        if self._state is _HANDSHAKE:
            self._shake_hands()
        if self._state is _OPEN:
            self._deliver()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _refuse(self) -> None:
        """Answers plain HTTP in plain HTTP; the deadline for a head ends the connection if the client does not."""
        assert self._socket is not None
        self._state = _ENDED
        self._protocol.answered(403)
        self._socket.write(_REFUSAL)
        self._socket.write_eof()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._log("failed", error)
            self._flush()  # the alert that tells the client why
            self.close()
        else:
            self._state = _OPEN
            self._flush()

    def _deliver(self) -> None:
        """Hands on what can be decrypted until the protocol wants no more of it."""
        more = True
        while more and self._state is _OPEN and not self._paused:
            size, more = self._decrypt(self._protocol.get_buffer(-1))
            if size:
                self._protocol.buffer_updated(size)
        if self._state is not _OPEN:
            return
        if self._outgoing.pending:  # a new key, or an alert
            self._flush()
        if self._broken:
            self.abort()
        elif self._eof and not self._paused and not self._eof_told:
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()

    def _decrypt(self, buffer: memoryview) -> tuple[int, bool]:
        """Fills a buffer as far as possible.

        Returns:
            How far, and whether there may be more.
        """
        tls, incoming = self._tls, self._incoming
        room, size = len(buffer), 0
        try:
            while size < room:
                got = cast("int", tls.read(room - size, buffer[size:]))  # at most one record
                size += got
                if not got:
                    self._eof = True
                    return size, False
                if not incoming.pending and not tls.pending():
                    return size, False
        except ssl.SSLWantReadError:
            return size, False
        except ssl.SSLZeroReturnError:
            self._eof = True
            return size, False
        except ssl.SSLError as error:
            self._log("broke", error)
            self._broken = True
            return size, False
        return size, True

    def _log(self, event: str, error: ssl.SSLError) -> None:
        logger.debug("TLS with %s %s: %s", self.get_extra_info("peername"), event, error.reason or error)

    def _flush(self) -> None:
        data = self._outgoing.read()
        transport = self._socket
        if transport is None:
            return
        # With nothing waiting, the transport would do the same a moment later, at three times the cost.
        if data and not transport.get_write_buffer_size():
            with suppress(OSError):  # not now, or not any more: the transport finds out which
                data = data[os.write(self._fd, data) :]
        if data:
            transport.write(data)

    def _say_goodbye(self) -> None:
        with suppress(ssl.SSLError):  # it goes out at once; that the client's has not come is no error
            self._tls.unwrap()
        self._flush()

    # -- towards the protocol ----------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport of the socket knows; ``sslcontext`` and ``ssl_object`` beside it."""
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._tls.context
        return default if self._socket is None else self._socket.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and sends; drops what is written before the handshake has ended."""
        if self._state is not _OPEN:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
                if self._outgoing.pending > _FLUSH_SIZE:
                    self._flush()
        except ssl.SSLError as error:
            self._log("broke", error)
            self.abort()
            return
        self._flush()

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that the system has not taken."""
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def is_closing(self) -> bool:
        """The socket is closed or about to be."""
        return self._socket is None or self._socket.is_closing()

    def pause_reading(self) -> None:
        """Receives and decrypts nothing more for now."""
        self._paused = True
        if self._socket is not None:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Goes on, with what had been received already."""
        self._paused = False
        if self._socket is not None:
            self._socket.resume_reading()
            asyncio.get_running_loop().call_soon(self._deliver)

    def can_write_eof(self) -> bool:
        """Yes: TLS has a way to say so, and TCP has another."""
        return True

    def write_eof(self) -> None:
        """Says that nothing more comes; what the client still sends is dropped."""
        if self._state is _OPEN:
            self._say_goodbye()
        if self._socket is not None and self._state is not _ENDED:
            self._socket.write_eof()
        self._state = _ENDED

    def close(self) -> None:
        """Closes once everything is sent."""
        if self._state is _OPEN:
            self._say_goodbye()
        self._state = _ENDED
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        """Closes at once."""
        self._state = _ENDED
        if self._socket is not None:
            self._socket.abort()
