"""Heads of requests: those that were parsed before, and what is not let pass in a new one."""

from __future__ import annotations

from typing import NamedTuple

from mariner.errors import BadRequest
from mariner.http.exchange import Exchange

__all__ = ["INVALID", "MAX_HEADERS", "TOO_LONG", "Head", "Heads", "check_head", "read_framing", "read_version"]

INVALID = "Invalid HTTP message."
TOO_LONG = "The head of the request is over max_header_size."
MAX_HEADERS = 256  # more than any browser or gateway sends


class Head(NamedTuple):
    """A request line and headers that the parser has accepted, shared by all requests that begin with these bytes."""

    method: str
    target: bytes
    raw_headers: list[bytes]
    fields: dict[bytes, bytes]
    length: int  # of the body
    readings: dict[tuple[bytes, ...], tuple[bytes, str, bool]]  # see Exchange
    line: bytes  # see Exchange


class Heads:
    """Heads by their bytes. Clients repeat themselves: what was parsed once need not be parsed again."""

    _MOST = 512  # a client that varies its heads fills this once and then costs nothing more

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

    def remember(self, text: bytes, head: Head) -> None:
        """Keeps a head; ``text`` is everything up to and including the empty line."""
        if len(self._known) < self._MOST:
            self._known[text] = head


def check_head(exchange: Exchange, limit: int) -> None:
    """Looks at a head that is long, came in pieces or names a header twice.

    Args:
        exchange: its ``fields`` have the last value of each header; they get the first.
        limit: bytes.

    Raises:
        BadRequest: it is too long, or means different things to different readers.
    """
    raw = exchange.raw_headers
    names = [name.lower() for name in raw[::2]]
    exchange.fields = dict(zip(reversed(names), raw[::-2], strict=True))
    if sum(map(len, raw)) + 2 * len(raw) + len(exchange.target) > limit:
        raise BadRequest(INVALID, hint=TOO_LONG)
    for name in (b"host", b"transfer-encoding"):
        if names.count(name) > 1:  # this server and a proxy before it might believe different ones
            raise BadRequest(INVALID, hint=f"Send one {name.decode()} header.")


def read_version(exchange: Exchange, version: str, *, keep_alive: bool) -> None:
    """Sets what follows from the version of a request and from its ``Connection`` headers.

    Args:
        exchange: of the request.
        version: as the parser read it.
        keep_alive: what the parser makes of the headers; of HTTP/1.0 that is not always right.

    Raises:
        BadRequest: the version is not spoken here.
    """
    if version not in {"1.0", "1.1"}:
        raise BadRequest(INVALID, hint=f"This server speaks HTTP/1.1, not HTTP/{version}.")
    exchange.http10 = version == "1.0"
    raw = exchange.raw_headers
    connection = [value for name, value in zip(raw[::2], raw[1::2], strict=True) if name.lower() == b"connection"]
    if not keep_alive or b"close" in b",".join(connection).lower():
        exchange.keep_alive = False


def read_framing(exchange: Exchange) -> tuple[int, bool]:
    """How the body of a request is delimited.

    Returns:
        Its length, 0 if it comes in chunks; and whether the client waits for an interim answer before it sends it.

    Raises:
        BadRequest: the transfer encoding, or the expectation (417), is not understood.
    """
    fields = exchange.fields
    encoding = fields.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or exchange.http10):
        raise BadRequest(INVALID, hint="The only transfer encoding understood is chunked.")
    length = int(fields.get(b"content-length", b"0"))
    expect = b"" if exchange.http10 else fields.get(b"expect", b"").lower()
    if expect not in {b"", b"100-continue"}:
        refusal = BadRequest("The only expectation understood is 100-continue.")
        refusal.status = 417
        raise refusal
    return length, bool(expect)
