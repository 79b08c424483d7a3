"""HTTP/1.1 on one connection: framing, limits, time limits, pipelining, back-pressure. Knows no routes.

The parser is llhttp (httptools). No task, no future and no timer belongs to a request: bytes arrive, complete requests
are handed to the application one at a time, answers are written when the application has them. Time is kept by
:meth:`Connections.sweep`, which looks at every connection about once per second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections import deque
from enum import IntEnum
from math import inf
from typing import cast

import httptools

from mariner.bodies import Slot
from mariner.errors import BadRequest, MarinerError, PayloadTooLarge, RequestTimeout, ServiceUnavailable
from mariner.http.connections import Connections
from mariner.http.exchange import Exchange, ExchangeState
from mariner.http.heads import INVALID, MAX_HEADERS, TOO_LONG, Head, check_head, read_framing, read_version
from mariner.logs import client_part, request_part

__all__ = ["HttpProtocol"]

logger = logging.getLogger(__name__)

_MAX_KNOWN = 16_384  # bytes; longer reads are parsed, which costs little beside handling what they bring
_UNCOMMON = frozenset({b"expect", b"transfer-encoding", b"upgrade"})  # change what follows the head
_MAX_QUEUED = 16  # pipelined requests that may wait before the connection is read no further
_MAX_UNSENT = 4 << 20  # bytes of a stream that may wait for a slow reader before the connection is cut
_DRAIN_SIZE = 1 << 20  # a refused body up to this size is read and dropped to keep the connection
_LINGER = 5.0  # seconds a refused client has to read the answer while its bytes are dropped
_PATIENCE = 0.1  # seconds for the answer to a client that sends no more, before it is asked whether it has left

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Phase(IntEnum):
    IDLE = 0  # between two requests
    HEAD = 1
    BODY = 2


_IDLE, _HEAD, _BODY = _Phase  # reading a member off its class costs ten times as much


class HttpProtocol(asyncio.BufferedProtocol):
    """One connection.

    Args:
        connections: of the listener that accepted it.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._app = connections.app
        self._limits = connections.limits
        self.default_headers = connections.app.default_headers
        self.ration = connections.ration
        self.answered = connections.app.finished
        self._access_log = connections.access_log
        self._access_lines = connections.access_lines
        if self._access_log is not None:
            self.answered = self._answered
        self._handed_over = 0.0  # when the application got the running request
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._direct = False  # bytes may go past the transport
        self._parser = httptools.HttpRequestParser(self)
        self._peer = "unix"
        self._client = client_part("127.0.0.1")
        self._deadline = inf

        # what is being received
        self._phase = _IDLE
        self._url = b""
        self._fields: list[bytes] = []
        self._receiving: Exchange | None = None
        self._body: bytes | bytearray = b""
        self._target: memoryview | None = None  # the rest of a large body goes here, past the parser
        self._upgrade = False  # the parser stops behind this head
        self._replaying = False  # a head is fed a second time, to reach the body behind it
        self._size = 0  # body bytes so far
        self._size_before = 0  # _size when _overhead was last set to 0
        self._overhead = 0  # bytes received without a complete head or a byte of the body
        self._read = 0  # length of the current read
        self._deaf = False  # what the client still sends is dropped
        self._excess = False  # it has sent something that was dropped
        self._half_closed = False  # the client sends nothing more, but may be there

        # what is being answered
        self._queue: deque[Exchange] = deque()
        self._active: Exchange | None = None
        self._pumping = False
        self._paused = False  # reading, because too much is queued
        self._blocked = False  # writing, because the client reads too slowly
        self._last = False  # close after the running exchange
        self._lingering = False
        self._ended = False  # nothing more is written
        self._written = 0  # bytes
        self._sent = -1  # bytes that had left when last looked at; -1 if none were waiting
        self._unsent_deadline = inf

    # -- transport ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername")
        if isinstance(peername, tuple):
            self._peer = str(peername[0])
            host = f"[{self._peer}]" if ":" in self._peer else self._peer
            self._client = client_part(f"/{host}:{peername[1]}")
        connections = self._connections
        connections.add(self)
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._fd = socket.fileno()
            self._direct = transport.get_extra_info("sslcontext") is None
        self._deadline = connections.now + self._limits.header_timeout
        if len(connections) > self._limits.max_connections:
            self._fail(ServiceUnavailable("Too many connections are open.", retry_after=1.0))
            self._close()
        elif connections.closing:
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._fd = -1
        self._parser = None
        self._deaf = self._ended = True
        self._cancel()

    def eof_received(self) -> bool:
        # A client that has closed and one that has only finished sending look the same here.
        last = self._queue[-1] if self._queue else self._active
        if last is None or self._ended or _hung_up(self._fd):
            self._deaf = self._ended = True
            self._cancel()
            return False
        last.keep_alive = False
        self._deaf = self._half_closed = True
        self._drop_receiving()
        asyncio.get_running_loop().call_later(_PATIENCE, self._probe)
        return True

    def _probe(self) -> None:
        """Finds out whether a client that sends nothing more has left: its work must not go on then.

        A system whose program has closed the connection objects to the next byte. An interim answer is one that every
        client of HTTP/1.1 skips.
        """
        exchange = self._active
        if _hung_up(self._fd):
            self.abort()
        elif exchange is not None and exchange.state is ExchangeState.OPEN and not exchange.http10:
            self.write(_CONTINUE)
            asyncio.get_running_loop().call_later(_PATIENCE, self._leave_if_hung_up)  # most objections are here by then

    def _leave_if_hung_up(self) -> None:
        if _hung_up(self._fd):
            self.abort()

    def get_buffer(self, _sizehint: int) -> memoryview:
        target = self._target
        return self._connections.buffer if target is None else target

    def buffer_updated(self, nbytes: int) -> None:
        if self._deaf:
            self._excess = True
            return
        if self._target is not None:
            self._receive_past_parser(nbytes)
        elif self._phase is not _IDLE or nbytes > _MAX_KNOWN:
            self._parse(self._connections.buffer[:nbytes])
        else:
            data = bytes(self._connections.buffer[:nbytes])
            head = data[: data.find(b"\r\n\r\n") + 4]
            known = self._connections.heads.get(head)
            if known is not None and len(head) + known.length == nbytes:
                self._receive_known(known, data[len(head) :])
            else:
                self._parse(memoryview(data))
                self._remember(head, nbytes)
        if self._queue:
            self._pump()

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._pump()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def _receive_known(self, head: Head, body: bytes) -> None:
        """A read that is exactly one request, with a head the parser has seen: it is not asked again."""
        exchange = Exchange(self, head.method, head.target, head.raw_headers, head.fields, self._peer)
        exchange.body = body
        exchange.readings = head.readings
        exchange.line = head.line
        self._deadline = inf
        self._queue.append(exchange)
        if self._last or self._connections.closing:
            exchange.keep_alive = False
            self._deaf = True

    def _remember(self, head: bytes, nbytes: int) -> None:
        """Keeps the head of a read that the parser found to be exactly one ordinary request."""
        if self._phase is not _IDLE or self._deaf or len(self._queue) != 1:
            return
        exchange = self._queue[0]
        if (
            exchange.error is None
            and exchange.keep_alive
            and not exchange.http10
            and isinstance(exchange.body, bytes)
            and len(head) + len(exchange.body) == nbytes
            and exchange.fields.keys().isdisjoint(_UNCOMMON)
        ):
            length = len(exchange.body)
            line = request_part(exchange.method, exchange.target)
            known = Head(exchange.method, exchange.target, exchange.raw_headers, exchange.fields, length, {}, line)
            self._connections.heads.remember(head, known)

    def _parse(self, data: memoryview) -> None:
        self._read = len(data)
        self._feed(data)
        if self._phase is not _IDLE:
            self._check_progress(self._read)

    def _feed(self, data: memoryview) -> None:
        while data:
            data = self._feed_up_to_upgrade(data)

    def _feed_up_to_upgrade(self, data: memoryview) -> memoryview:
        """Parses as far as the parser goes; what is left stands behind a head that asked for another protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self._deaf:  # bytes after the last request
                self._excess = True
            else:
                cause = error.__context__
                if isinstance(cause, Exception) and not isinstance(cause, MarinerError):
                    logger.error("A request could not be received", exc_info=cause)  # noqa: TRY400 - the parser's is empty
                self._fail(cause if isinstance(cause, MarinerError) else BadRequest(INVALID))
            return data[:0]
        else:
            return data[:0]
        self._decline_upgrade()
        return data

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        if self._deaf:
            raise BadRequest(INVALID)
        self._phase = _HEAD
        self._overhead = -1  # this read may have brought earlier requests too: counted from the next one on
        self._deadline = self._connections.now + self._limits.header_timeout

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer lands here too and is dropped with the end of its body. Where a read ended with the space behind a
        # value, the parser has left it in place.
        self._fields += (name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        raw, self._fields = self._fields, []
        url, self._url = self._url, b""
        if self._replaying:
            return
        limits, parser = self._limits, self._parser
        if len(raw) > 2 * MAX_HEADERS:
            raise BadRequest(INVALID, hint=f"A request may have {MAX_HEADERS} headers.")
        fields = dict(zip(map(bytes.lower, raw[::2]), raw[1::2], strict=True))
        self._phase = _BODY
        self._size = self._size_before = 0
        exchange = Exchange(self, parser.get_method().decode(), url, raw, fields, self._peer)
        self._receiving = exchange
        if 2 * len(fields) != len(raw) or self._overhead >= 0 or self._read > limits.max_header_size:
            check_head(exchange, limits.max_header_size)
            fields = exchange.fields
        self._overhead = -1
        if self._last or self._connections.closing:
            exchange.keep_alive = False
        if b"connection" in fields or not parser.should_keep_alive():
            read_version(exchange, parser.get_http_version(), keep_alive=parser.should_keep_alive())
        if parser.should_upgrade():
            if exchange.method == "CONNECT":
                raise BadRequest(INVALID, hint="This server is no proxy.")
            self._upgrade = True
        if b"content-length" in fields or b"transfer-encoding" in fields or b"expect" in fields:
            self._expect_body(exchange)

    def _expect_body(self, exchange: Exchange) -> None:
        limits = self._limits
        self._deadline = self._connections.now + limits.body_timeout
        length, waits = read_framing(exchange)
        if length > limits.max_request_size:
            if waits or length > _DRAIN_SIZE:
                raise self._too_large()
            exchange.error = self._too_large()  # the body is short enough to be read and dropped
            return
        if length and length >= limits.shared_body_threshold:
            self._allocate(exchange, length, exchange.fields.get(b"content-type", b""))
        # Nothing must be written in front of the answers that are due before; such a client may send its body as well.
        if waits and self._active is None and not self._queue:
            self.write(_CONTINUE)

    def _allocate(self, exchange: Exchange, length: int, content_type: bytes) -> None:
        arena = self._connections.arena
        # Forms are taken apart in this process, so they gain nothing from lying in shared memory.
        form = content_type.lower().startswith((b"multipart/", b"application/x-www-form-urlencoded"))
        slot = None if arena is None or form else arena.allocate(length)
        if slot is None:
            self._body = bytearray(length)
            self._target = memoryview(self._body)
        else:
            exchange.body = slot
            self._target = slot.view[:]

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        exchange = self._receiving
        if exchange is None or exchange.error is not None:
            return
        if self._target is not None:
            self._target[: len(data)] = data
            self._target = self._target[len(data) :]
        elif self._size > self._limits.max_request_size:
            raise self._too_large()
        elif not self._body:
            self._body = data
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data

    def on_message_complete(self) -> None:
        exchange = self._receiving
        if exchange is not None and not self._upgrade:
            self._complete(exchange)

    def _complete(self, exchange: Exchange) -> None:
        if not isinstance(exchange.body, Slot):
            exchange.body = self._body
        self._body = b""
        self._target = None
        self._receiving = None
        if self._fields:
            self._fields = []
        self._phase = _IDLE
        self._deadline = inf
        self._queue.append(exchange)
        if not exchange.keep_alive:
            self._deaf = True

    def _receive_past_parser(self, nbytes: int) -> None:
        exchange = self._receiving
        assert exchange is not None
        assert self._target is not None
        self._target = self._target[nbytes:]
        self._deadline = self._connections.now + self._limits.body_timeout
        if not self._target:
            self._parser = httptools.HttpRequestParser(self)  # the old one still waits for this body
            self._complete(exchange)

    def _decline_upgrade(self) -> None:
        """Stays with HTTP/1.1, as the client must expect: the body, if there is one, follows the head."""
        exchange = self._receiving
        assert exchange is not None
        framing = b""
        if b"transfer-encoding" in exchange.fields:
            framing = b"transfer-encoding: chunked\r\n"
        elif b"content-length" in exchange.fields:
            framing = b"content-length: %b\r\n" % exchange.fields[b"content-length"]
        self._upgrade = False
        self._replaying = True
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
        self._replaying = False

    def _check_progress(self, nbytes: int) -> None:
        """Bounds what a request may send without getting on: an endless header, trailer or chunk extension."""
        if self._phase is _BODY and self._size != self._size_before:
            self._size_before = self._size
            self._overhead = 0
            self._deadline = self._connections.now + self._limits.body_timeout
        elif self._overhead < 0:
            self._overhead = 0
        else:
            self._overhead += nbytes
            if self._overhead > self._limits.max_header_size:
                self._fail(BadRequest(INVALID, hint=TOO_LONG))

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is over the limit of {self._limits.max_request_size} bytes.",
            hint="Raise max_request_size in the configuration of the server.",
        )

    def _fail(self, error: MarinerError) -> None:
        """Answers with an error when its turn comes, and closes: where the next request would start is unknown."""
        exchange = self._receiving or Exchange(self, "GET", b"", [], {}, self._peer)
        exchange.release()
        exchange.error = error
        exchange.keep_alive = False
        self._complete(exchange)
        self._pump()

    # -- answering ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hands over the next request, and the next if that one is answered at once."""
        if self._pumping:
            return
        self._pumping = True
        app, queue = self._app, self._queue
        while queue and self._active is None and not self._blocked:
            exchange = self._active = queue.popleft()
            if self._access_log is not None:
                self._handed_over = self._access_log.now()
            if exchange.error is None:
                app.handle(exchange)
            else:
                app.refuse(exchange, exchange.error)
        self._pumping = False
        if queue or self._paused:
            self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._half_closed:
            return
        queued = sum(e.body.size if isinstance(e.body, Slot) else len(e.body) for e in self._queue)
        full = len(self._queue) > _MAX_QUEUED or queued > self._limits.shared_body_threshold
        if full and not self._paused:
            self._paused = True
            transport.pause_reading()
        elif self._paused and not full:
            self._paused = False
            transport.resume_reading()

    def write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._ended:
            return
        if self._blocked and transport.get_write_buffer_size() > _MAX_UNSENT:
            logger.warning("The client at %s reads its answer too slowly: connection closed", self._peer)
            self.abort()
            return
        self._written += len(data)
        # With nothing waiting, the transport would do the same a moment later, at three times the cost.
        if self._direct and not transport.get_write_buffer_size():
            try:  # noqa: SIM105 - suppress() costs as much as half of an answer's head
                data = data[os.write(self._fd, data) :]
            except OSError:
                pass  # not now, or not any more: the transport finds out which
        if data:
            transport.write(data)

    def _answered(self, status: int) -> None:
        self._app.finished(status)
        exchange, log = self._active, self._access_log
        if exchange is None or log is None:
            return
        ration = self._access_lines
        if ration.left > 0 or status >= 400:
            ration.left -= 1
            line = exchange.line or request_part(exchange.method, exchange.target, http10=exchange.http10)
            log.write(self._client, line, status, self._handed_over)

    def finished(self, exchange: Exchange) -> None:
        self._active = None
        if self._last or not exchange.keep_alive:
            excess = exchange.error is not None or self._excess or _has_sent(self._fd)
            self._close(linger=excess and not self._half_closed)
        else:
            if self._phase is _IDLE:
                self._deadline = self._connections.now + self._limits.keep_alive_timeout
            if self._queue:
                self._pump()

    # -- ending ------------------------------------------------------------------------------------------------------

    def _close(self, *, linger: bool = False) -> None:
        """Closes once everything is sent.

        Args:
            linger: the client may still be sending. Closing now would reset the connection, and the client might
                never see the answer: drop what it sends until it closes, too.
        """
        self._cancel()
        self._deaf = self._ended = True
        transport = self._transport
        if transport is None:
            return
        if linger and transport.can_write_eof():
            transport.write_eof()
            self._lingering = True
            self._deadline = self._connections.now + _LINGER
            self._pause_or_resume()
        else:
            transport.close()

    def _cancel(self) -> None:
        """Nobody is there to be answered."""
        self._drop_receiving()
        queued = list(self._queue)
        self._queue.clear()
        for exchange in queued:
            exchange.release()
        active, self._active = self._active, None
        if active is not None:
            active.cancel()

    def _drop_receiving(self) -> None:
        """The rest of the request that is arriving will not come."""
        self._phase = _IDLE
        self._deadline = inf
        self._body = b""
        self._target = None
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            receiving.release()

    def abort(self) -> None:
        self._deaf = self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Ends after the request that is running or arriving."""
        self._last = True
        last = self._active or (self._queue[0] if self._queue else self._receiving)
        if last is not None:
            last.keep_alive = False
        elif self._phase is _IDLE and not self._lingering:
            self._close()

    def check_deadlines(self, now: float) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._half_closed:
            self._leave_if_hung_up()
        unsent = transport.get_write_buffer_size()
        if not unsent:
            self._sent = -1
        elif self._written - unsent > self._sent:
            self._sent = self._written - unsent
            self._unsent_deadline = now + self._limits.body_timeout
        elif now >= self._unsent_deadline:
            logger.warning("The client at %s stopped reading its answer: connection closed", self._peer)
            self.abort()
            return
        if now < self._deadline:
            return
        if self._lingering:
            self.abort()
        elif self._phase is not _IDLE:
            self._fail(RequestTimeout("The request did not arrive in time."))
        elif unsent:
            self._deadline = now + self._limits.keep_alive_timeout  # the client is not idle: it is still reading
        else:
            self._close()


def _has_sent(fd: int) -> bool:
    """The client has sent something that nobody has read; closing now would take back the answer."""
    if fd < 0:
        return False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _hung_up(fd: int) -> bool:
    """The other side of the socket has let go of it, as far as this system has heard; False without a socket."""
    if fd < 0:
        return False
    poller = select.poll()
    poller.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))
