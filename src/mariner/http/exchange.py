"""Exchange: one HTTP request and its answer. Knows how an answer is framed, not what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from random import getrandbits
from typing import TYPE_CHECKING, Protocol

from mariner.bodies import Slot
from mariner.errors import MarinerError

if TYPE_CHECKING:
    from mariner.http.timing import Ration

__all__ = ["Connection", "Exchange", "ExchangeState", "HeaderPairs", "encode_headers", "new_request_id"]

HeaderPairs = tuple[tuple[str, str], ...]

_BODILESS = frozenset({204, 304})  # statuses whose answer ends with its head

# Headers that belong to the connection or to the server; whoever else sets them is not heard.
_RESERVED = frozenset(
    {
        "cache-control",
        "connection",
        "content-length",
        "expires",
        "keep-alive",
        "pragma",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
_NO_CACHE = (
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache; no-store, must-revalidate, private\r\n"
    b"Expires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
)
_KEEP = _NO_CACHE + b"connection: keep-alive\r\n"
_CLOSE = _NO_CACHE + b"connection: close\r\n"
# TorchServe's; Python's words for these depend on its version.
_PHRASES = {
    413: "Request Entity Too Large",
    414: "Request-URI Too Long",
    416: "Requested Range Not Satisfiable",
    422: "Unprocessable Entity",
}
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {_PHRASES.get(status, status.phrase)}\r\n".encode()
    for status in HTTPStatus
    if status >= 200
}

# The beginning of the answers that nobody adds a header to, up to the request's id.
_STARTS = {
    (status, keep_alive): line + (_KEEP if keep_alive else _CLOSE) + b"x-request-id: "
    for status, line in _STATUS_LINES.items()
    if status not in _BODILESS
    for keep_alive in (True, False)
}

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_NOT_IN_PHRASE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")

# Everything but the version and variant bits of a UUIDv4.
_RANDOM_BITS = ((1 << 128) - 1) ^ (0xF << 76) ^ (0x3 << 62)
_UUID4 = (0x4 << 76) | (0x2 << 62)
_NODE = (1 << 48) - 1
_STEP = 0x9E3779B97F4B  # the golden ratio of 48 bits, odd: neighbours look unlike each other


def _request_ids() -> Iterator[str]:
    """Random UUIDv4s as text, at a tenth of the cost of ``str(uuid.uuid4())``. Unique, not secret.

    256 of them share their first 74 random bits; a step that is odd leads through the last 48 without coming back.
    """
    while True:
        text = "%032x" % (getrandbits(128) & _RANDOM_BITS | _UUID4)
        start = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-"
        node = getrandbits(48)
        for _ in range(256):
            node = (node + _STEP) & _NODE
            yield f"{start}{node:012x}"


new_request_id = _request_ids().__next__


@lru_cache(maxsize=512)
def encode_headers(headers: HeaderPairs, defaults: HeaderPairs = ()) -> bytes:
    """Header lines for an answer. Of equal names the last wins; ``defaults`` yield to all of them.

    Raises:
        ValueError: a name is not a token, or a value holds a control character or is not Latin-1.
    """
    lines: dict[str, bytes] = {}
    for name, value in (*defaults, *headers):
        if not _TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"HTTP does not allow the response header {name!r}: {value!r}")
        if (lower := name.lower()) not in _RESERVED:
            lines[lower] = f"{name}: {value}\r\n".encode("latin-1")
    return b"".join(lines.values())


def _status_line(status: int, phrase: str) -> bytes:
    if not phrase and status in _STATUS_LINES:
        return _STATUS_LINES[status]
    if not 200 <= status <= 999:
        raise ValueError(f"HTTP does not allow {status} as the status of an answer")
    return f"HTTP/1.1 {status} {_NOT_IN_PHRASE.sub(' ', phrase)}\r\n".encode("latin-1")


class Connection(Protocol):
    """What an exchange needs of the connection it came in on."""

    default_headers: HeaderPairs  # on every answer that does not set them itself (CORS)
    ration: Ration

    @property
    def answered(self) -> Callable[[int], None]:
        """Told the status of every answer."""

    def write(self, data: bytes) -> None: ...

    def finished(self, exchange: Exchange) -> None:
        """The answer has been written completely."""

    def abort(self) -> None:
        """Cuts the connection: the client must see that the answer is incomplete."""


class ExchangeState(Enum):
    """How far the answer is."""

    OPEN = "open"
    STREAMING = "streaming"  # the status line is out, the end is not
    DONE = "done"  # answered, aborted, or the client has gone


_OPEN, _STREAMING, _DONE = ExchangeState  # reading a member off its class costs ten times as much


class Exchange:
    """One request and its answer.

    The answer is either one :meth:`respond`, or :meth:`start_stream`, any number of :meth:`send_chunk` and
    :meth:`end_stream`. Once the exchange is over all of them do nothing, so late answers need no check.

    Args:
        connection: where it came from.
        method: in upper case.
        target: request target as sent: path, query.
        raw_headers: names and values in turn, as sent.
        fields: the first value of each header by its lower-case name.
        peer: IP address of the other side of the socket, "unix" for a unix socket.

    Attributes:
        connection: as given.
        id: ``x-request-id`` of the answer.
        body: complete. A slot is released at the end unless whoever took it over has put something else in its place.
        keep_alive: the connection stays open after the answer.
        http10: the client speaks HTTP/1.0, which has no chunks.
        error: the protocol's own answer to a request that cannot be handled; None hands it to the application.
        readings: what handlers get of the head, by what was added to it; shared by requests with the same one.
        line: the request as the access log shows it, if that was made before.
        on_cancel: called once if the client goes before the answer is complete.
    """

    __slots__ = (
        "body",
        "connection",
        "error",
        "fields",
        "http10",
        "id",
        "keep_alive",
        "line",
        "method",
        "on_cancel",
        "peer",
        "raw_headers",
        "readings",
        "state",
        "target",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        raw_headers: list[bytes],
        fields: dict[bytes, bytes],
        peer: str,
    ) -> None:
        self.connection = connection
        self.id = new_request_id()
        self.method = method
        self.target = target
        self.raw_headers = raw_headers
        self.fields = fields
        self.peer = peer
        self.body: bytes | bytearray | Slot = b""
        self.keep_alive = True
        self.http10 = False
        self.error: MarinerError | None = None
        self.line = b""
        self.readings: dict[tuple[bytes, ...], tuple[bytes, str, bool]] | None = None
        self.on_cancel: Callable[[], object] | None = None
        self.state: ExchangeState = _OPEN

    # -- the request -------------------------------------------------------------------------------------------------

    @property
    def streaming(self) -> bool:
        """The answer has begun and goes on."""
        return self.state is _STREAMING

    @property
    def headers(self) -> dict[str, str]:
        """The first value of each header by its lower-case name."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.fields.items()}

    @property
    def raw_path(self) -> bytes:
        """The target without its query, still percent-encoded; scheme and authority of an absolute target removed."""
        path = self.target.partition(b"?")[0].partition(b"#")[0]
        if not path.startswith(b"/") and b"://" in path:
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        return path

    @property
    def raw_query(self) -> bytes:
        """What follows the first question mark, still percent-encoded."""
        return self.target.partition(b"#")[0].partition(b"?")[2]

    def take_body(self) -> bytes | bytearray:
        """The body as ordinary bytes, wherever it lies."""
        body = self.body
        if isinstance(body, Slot):
            self.body = bytes(body.view)
            body.release()
            return self.body
        return body

    # -- the answer --------------------------------------------------------------------------------------------------

    def respond(
        self,
        status: int = 200,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | bytearray | memoryview = b"",
        phrase: str = "",
        lines: bytes = b"",
    ) -> None:
        """Answers in one piece.

        Args:
            status: of the answer.
            headers: names and values; those that belong to the server are left out.
            body: of the answer.
            phrase: reason phrase, "" for the standard one.
            lines: complete header lines of the server's own.

        Raises:
            ValueError: HTTP does not allow the status or a header; nothing has been written.
        """
        if self.state is not _OPEN:
            return
        connection = self.connection
        if not headers and not phrase and not lines and not connection.default_headers and self.method != "HEAD":
            start = _STARTS.get((status, self.keep_alive))
            if start is not None:
                self.state = _DONE
                connection.answered(status)
                connection.write(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (start, self.id.encode(), len(body), body))  # type: ignore[str-format]  # any buffer
                self._finish()
                return
        if headers or connection.default_headers:
            lines += encode_headers(tuple(headers), connection.default_headers)
        head = b"%bx-request-id: %b\r\n%b%b" % (
            _status_line(status, phrase),
            self.id.encode(),
            lines,
            _KEEP if self.keep_alive else _CLOSE,
        )
        self.state = _DONE
        connection.answered(status)
        if status in _BODILESS:
            connection.write(head + b"\r\n")
        elif self.method == "HEAD":
            connection.write(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)))
        else:
            connection.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))  # type: ignore[str-format]  # any buffer
        self._finish()

    def start_stream(
        self,
        status: int = 200,
        headers: Sequence[tuple[str, str]] = (),
        first: bytes | bytearray | memoryview = b"",
        phrase: str = "",
        lines: bytes = b"",
    ) -> None:
        """Starts an answer of unknown length with its first piece; see :meth:`respond`.

        Raises:
            ValueError: HTTP does not allow the status or a header; nothing has been written.
        """
        if self.state is not _OPEN:
            return
        if self.http10:
            self.keep_alive = False  # the end of the connection is the only end of the body there
        head = b"%bx-request-id: %b\r\n%b%b%b\r\n" % (
            _status_line(status, phrase),
            self.id.encode(),
            lines + encode_headers(tuple(headers), self.connection.default_headers),
            _KEEP if self.keep_alive else _CLOSE,
            b"" if self.http10 or status in _BODILESS else b"transfer-encoding: chunked\r\n",
        )
        self.state = _STREAMING
        if status in _BODILESS:
            self.method = "HEAD"  # the pieces have no place in such an answer
        self.connection.answered(status)
        self.connection.write(head + self._chunk(first))

    def send_chunk(self, piece: bytes | bytearray | memoryview) -> None:
        """Sends one more piece; an empty one sends nothing."""
        if self.state is _STREAMING and (chunk := self._chunk(piece)):
            self.connection.write(chunk)

    def end_stream(self, last: bytes | bytearray | memoryview = b"") -> None:
        """Sends the last piece, which may be empty, and the end."""
        if self.state is not _STREAMING:
            return
        self.state = _DONE
        end = b"" if self.http10 or self.method == "HEAD" else b"0\r\n\r\n"
        if rest := self._chunk(last) + end:
            self.connection.write(rest)
        self._finish()

    def abort(self) -> None:
        """Cuts the connection because the answer cannot be completed; :attr:`on_cancel` is not called."""
        if self.state is _DONE:
            return
        self.state = _DONE
        self.release()
        self.connection.abort()

    def cancel(self) -> None:
        """The client has gone: called by the connection, passes it on once."""
        if self.state is _DONE:
            return
        self.state = _DONE
        self.release()
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def release(self) -> None:
        """Frees the body."""
        body, self.body = self.body, b""
        if isinstance(body, Slot):
            body.release()

    def _finish(self) -> None:
        if self.body:
            self.release()
        self.on_cancel = None
        self.connection.finished(self)

    def _chunk(self, piece: bytes | bytearray | memoryview) -> bytes:
        if not piece or self.method == "HEAD":
            return b""
        return bytes(piece) if self.http10 else b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))
