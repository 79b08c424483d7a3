"""What a server may answer to a stream of bytes: our own strict reading of RFC 9110 and RFC 9112.

Written without the server's parser and without looking at what the generator meant: the bytes that were sent decide.
Where the standard leaves a choice, both answers are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH"}
DRAINED = 1 << 20  # longest body that is read and dropped after it was refused
MOST_HEADERS = 256
SLACK = 200  # bytes by which the length of a head may be counted differently

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_LOOSE_LINE = re.compile(rb"\S+[ \t]+\S.*")  # words between blanks: a reader may make sense of them
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(rb"[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(.*)", re.DOTALL)
_EXTENSIONS = re.compile(rb'(;[!#$%&\'*+.^_`|~0-9A-Za-z-]+(=([!#$%&\'*+.^_`|~0-9A-Za-z-]+|"[\x20\x21\x23-\x7e]*"))?)*')
_CLOSE = re.compile(rb"(?i)(^|[,\s])close($|[,\s])")


@dataclass(frozen=True)
class Bounds:
    """The server's limits, in bytes."""

    body: int
    head: int


@dataclass
class Expected:
    """One answer.

    Attributes:
        statuses: those allowed.
        body: of a 200; None if anything will do.
        head: the request was HEAD.
        closes: the connection ends after it; None if either will do.
        interim: a 100 may come first.
        optional: it need not come, because the request is not complete.
    """

    statuses: set[int]
    body: bytes | None = None
    head: bool = False
    closes: bool | None = None
    interim: bool = False
    optional: bool = False
    either: bool = field(default=False, repr=False)  # the request may also be refused


class _Invalid(Exception):
    """No server may accept this; ``statuses`` says how it may refuse."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = set(statuses) or {400}


class _Incomplete(Exception):
    """The bytes end too early; what there is may have been refused already."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = set(statuses) or {400}


@dataclass
class _Request:
    """What a head says."""

    method: bytes
    target: bytes
    http10: bool
    headers: list[tuple[bytes, bytes]]
    either: bool

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


def expected_answers(sent: bytes, bounds: Bounds) -> Iterator[Expected]:
    """The answers to a connection on which exactly these bytes were sent, in order."""
    position = 0
    while True:
        start = position
        while sent[position : position + 1] in {b"\r", b"\n"}:
            position += 1
        odd = bool(sent[start:position].replace(b"\r\n", b""))  # half a line end before a request
        if position == len(sent):
            return
        try:
            request, position = _read_head(sent, position, bounds)
        except _Invalid as invalid:
            yield Expected(invalid.statuses, closes=True, head=sent[position:].startswith(b"HEAD"))
            return
        except _Incomplete as incomplete:
            yield Expected(incomplete.statuses, closes=True, optional=True)
            return
        request.either |= odd
        answer = Expected({200}, head=request.method == b"HEAD", either=request.either)
        try:
            body, position = _read_body(sent, position, request, answer, bounds)
        except _Invalid as invalid:
            answer.statuses, answer.closes = invalid.statuses | ({400, 417} if request.either else set()), True
            yield answer
            return
        except _Incomplete as incomplete:
            answer.statuses, answer.optional, answer.closes = incomplete.statuses | {400, 417}, True, True
            yield answer
            return
        if answer.statuses == {200}:
            answer.statuses, answer.body = _outcome(request, body)
        _settle_connection(request, answer)
        yield answer
        if answer.closes:
            return


# -- the head --------------------------------------------------------------------------------------------------------


def _read_head(sent: bytes, start: int, bounds: Bounds) -> tuple[_Request, int]:
    end = sent.find(b"\r\n\r\n", start)
    raw = sent[start:] if end < 0 else sent[start:end]
    if end < 0:
        if len(raw) > bounds.head + 65_536 + SLACK:
            raise _Invalid
        raise _Incomplete
    lines = raw.split(b"\r\n")
    if any(byte in line for line in lines for byte in (b"\r", b"\n", b"\0")):
        raise _Invalid
    method, target, http10, either = _read_request_line(lines[0])
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise _Invalid
        either |= not _VALUE.fullmatch(value)  # a control character may be let pass
        headers.append((name.lower(), value.strip(b" \t")))
    length = end + 4 - start
    if len(headers) > MOST_HEADERS or length > bounds.head + SLACK:
        raise _Invalid
    either |= length > bounds.head
    return _Request(method, target, http10, headers, either), end + 4


def _read_request_line(line: bytes) -> tuple[bytes, bytes, bool, bool]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if not _LOOSE_LINE.fullmatch(line):
            raise _Invalid
        line = re.sub(rb" (RTSP|ICE)/", b" HTTP/", line)  # llhttp knows these too and does not say which it read
        match = _REQUEST_LINE.fullmatch(b" ".join(line.split()))
        if match is None:
            raise _Invalid
        either = True
    else:
        either = False
    method, target, *version = match.groups()
    if version not in ([b"1", b"0"], [b"1", b"1"]):
        if method == b"PRI":
            raise _Incomplete(400, 505)  # what HTTP/2 begins with is longer than a head
        raise _Invalid(400, 505)
    if method == b"CONNECT":
        raise _Invalid(400, 405, 501)
    either |= method not in METHODS or not _TARGET.fullmatch(target)
    if not target.startswith(b"/") and not re.match(rb"(?i)https?://[^/?#]+", target):
        if target != b"*" and b"://" not in target:
            raise _Invalid(400, 404, 405)
        either = True
    return method, target, version == [b"1", b"0"], either


# -- the body --------------------------------------------------------------------------------------------------------


def _read_body(sent: bytes, start: int, request: _Request, answer: Expected, bounds: Bounds) -> tuple[bytes, int]:
    """The body and where it ends; says in ``answer`` if it is refused although it is read."""
    lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if len(request.values(b"host")) > 1 or len(lengths) + len(codings) > 1:
        raise _Invalid
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise _Invalid
    if codings and (codings[0].lower() != b"chunked" or request.http10):
        raise _Invalid(400, 501)
    length = int(lengths[0][:30]) if lengths else 0
    _check_expectation(request, answer, too_large=length > bounds.body)
    if length > bounds.body:
        if length > DRAINED or (answer.interim and len(request.values(b"expect")) == 1):
            raise _Invalid(413) if length < 1 << 63 else _Invalid(400, 413)
        answer.statuses = {413}
    if codings:
        return _read_chunks(sent, start, request, bounds)
    if len(sent) - start < length:
        raise _Incomplete(*answer.statuses - {200})
    return sent[start : start + length], start + length


def _check_expectation(request: _Request, answer: Expected, *, too_large: bool) -> None:
    expectations = [] if request.http10 else [value.lower() for value in request.values(b"expect") if value]
    if any(value != b"100-continue" for value in expectations):
        if len(request.values(b"expect")) == 1:
            raise _Invalid(417, 413, 400) if too_large else _Invalid(417)
        request.either = True  # several: which of them counts is nobody's business
    answer.interim = bool(expectations)


def _read_chunks(sent: bytes, start: int, request: _Request, bounds: Bounds) -> tuple[bytes, int]:
    body = b""
    position = start
    idle = 0  # bytes of lines since the last data
    while True:
        line, position = _read_line(sent, position, bounds)
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise _Invalid
        digits, extensions = match.groups()
        idle += len(line)
        request.either |= not _EXTENSIONS.fullmatch(extensions) or len(digits) > 16 or idle > bounds.head
        size = int(digits, 16)
        if size == 0:
            break
        if len(body) + size > bounds.body and len(sent) - position >= size:
            raise _Invalid(413, 400)
        data = sent[position : position + size]
        body += data
        if len(body) > bounds.body:
            raise _Invalid(413, 400)
        if len(data) < size:
            raise _Incomplete(413)
        position += size
        end = sent[position : position + 2]
        if end != b"\r\n"[: len(end)]:
            raise _Invalid(400, 413)
        if len(end) < 2:
            raise _Incomplete
        position += 2
        idle = 0
    return body, _skip_trailers(sent, position, request, bounds)


def _skip_trailers(sent: bytes, position: int, request: _Request, bounds: Bounds) -> int:
    start = position
    while True:
        line, position = _read_line(sent, position, bounds)
        if not line:
            break
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name) or b"\0" in value:
            raise _Invalid
        request.either |= not _VALUE.fullmatch(value) or name.lower() in {b"content-length", b"transfer-encoding"}
    request.either |= position - start > bounds.head
    return position


def _read_line(sent: bytes, start: int, bounds: Bounds) -> tuple[bytes, int]:
    end = sent.find(b"\r\n", start)
    line = sent[start:] if end < 0 else sent[start:end]
    if b"\n" in line or b"\r" in line.removesuffix(b"\r" if end < 0 else b""):
        raise _Invalid if end >= 0 else _Incomplete
    if end < 0:
        if len(line) > bounds.head + 65_536 + SLACK:
            raise _Invalid
        raise _Incomplete
    return line, end + 2


# -- the answer ------------------------------------------------------------------------------------------------------


def _settle_connection(request: _Request, answer: Expected) -> None:
    connection = b",".join(request.values(b"connection"))
    if request.http10:
        stays = b"keep-alive" in {token.strip() for token in connection.lower().split(b",")}
        answer.closes = bool(_CLOSE.search(connection)) or not stays
        if answer.closes and b"keep-alive" in connection.lower():
            answer.closes = None  # "xkeep-alive": a reader may see the word
    else:
        answer.closes = bool(_CLOSE.search(connection))
    if request.either:
        answer.statuses |= {400, 405, 417, 501}
        answer.closes = answer.closes or None
    elif re.search(rb"(?i)close", connection) and not answer.closes:
        answer.closes = None  # "closed", "x-close": a reader may see the word


def _outcome(request: _Request, body: bytes) -> tuple[set[int], bytes | None]:
    """Status and body of the answer to a request that is understood; the model ``echo`` 1.0 is the only one."""
    target = re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", b"", request.target)
    path = re.split(rb"[?#]", target)[0] or b"/"
    if re.search(rb"%(?![0-9A-Fa-f]{2})", path):
        return {400}, None
    segments = unquote_to_bytes(path).rstrip(b"/").split(b"/")[1:]
    if b"" in segments or b"://" in request.target[1:]:
        return {200, 400, 404, 405}, None
    status, answer = 404, None
    match segments:
        case []:
            status = 200 if request.method == b"OPTIONS" else 405
        case [b"ping", *_]:
            status = 200
        case [b"predictions", b"echo"] | [b"predictions", b"echo", b"1.0", *_]:
            status, answer = 200, None if request.method == b"OPTIONS" else body
    kind = (request.values(b"content-type") or [b""])[0].lower()
    if answer is not None and kind.startswith((b"multipart/form-data", b"application/x-www-form-urlencoded")):
        return {200, 400}, None
    return {status}, answer
