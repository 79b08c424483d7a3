"""Inputs for the HTTP fuzzer: a grammar of requests, ways to spoil them, and ways to send them. Seeded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random

TARGETS = (
    b"/predictions/echo", b"/predictions/echo", b"/predictions/echo", b"/predictions/echo/1.0", b"/predictions/%65cho",
    b"/predictions/echo/1.0/a/b?x=1", b"/predictions/absent", b"/predictions/echo/9", b"/ping", b"/ping/", b"/",
    b"/nowhere", b"/predictions", b"http://127.0.0.1/ping", b"https://u@h:1/predictions/echo", b"*", b"/%zz",
    b"/%2e%2e/", b"/predictions/echo?%", b"/predictions/echo#x", b"//ping", b"/predictions//echo", b"ping", b"h:1",
    b"/ping?a|b", b"/caf\xc3\xa9", b"/a b", b"/predictions/echo/" + b"x" * 3000,
)  # fmt: skip
METHODS = (
    b"POST", b"POST", b"POST", b"PUT", b"GET", b"GET", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT",
    b"PROPFIND", b"BREW", b"post", b"PRI", b"", b"G(T", b"DESCRIBE",
)  # fmt: skip
VERSIONS = (b"HTTP/1.1",) * 12 + (
    b"HTTP/1.0", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/9.9", b"HTTP/1.1 ", b"http/1.1", b"HTTP/11",
    b"", b"ICE/1.0", b"RTSP/1.0",
)  # fmt: skip
HEADERS = (
    b"Host: localhost", b"host: a", b"Accept: */*", b"X-Request-Id: mine", b"Content-Type: text/plain",
    b"Content-Type: application/json", b"Content-Type: application/octet-stream", b"User-Agent: fuzz/1.0 (x; y)",
    b"Connection: keep-alive", b"Connection: close", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
    b"Connection: upgrade", b"Upgrade: websocket", b"Connection: x-close, y", b"Connection: keep-alive, close",
    b"X-Empty:", b"X-Tab:\tvalue\t", b"X-Latin: caf\xe9", b"Cookie: a=b; c=d", b"TE: trailers", b"Trailer: X-T",
    b"Expect: 100-continue", b"Expect: 100-Continue",
)  # fmt: skip
BAD_HEADERS = (
    b"Expect: a-miracle", b"Host : space", b" folded: x", b"\tfolded", b"no colon", b": nameless", b"Na me: x",
    b"X-Nul: a\0b", b"X-Cr: a\rb",
    b"X-Lf: a\nb", b"X-Bell: a\x07b", b"X-Del: a\x7fb", b"N\xc3\xa4me: x", b"Expect: a-miracle", b"Expect:",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: xchunked", b"Content-Length: -1", b"Content-Length: +1",
    b"Content-Length: 1 ", b"Content-Length: 0x1", b"Content-Length: 1, 1", b"Content-Length: ",
    b"Content-Length: 99999999999999999999", b"Content-Length: 18446744073709551617", b"Content-Length: 1e3",
    b"Host: b", b"X-Long: " + b"x" * 5000, b"\x00", b'{"json": 1}', b"Content-Length", b"Transfer-Encoding",
)  # fmt: skip
EXTENSIONS = (b"", b"", b"", b";a=b", b';a="q u"', b";x", b" ;a", b";", b";\x01", b";a=b;c", b";" + b"e" * 4000)
TRAILERS = (b"", b"", b"", b"X-T: 1\r\n", b"A: b\r\nC: d\r\n", b"bad\r\n", b"Content-Length: 3\r\n", b" f: x\r\n")
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x05" * 40,  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",  # HTTP/2
    b"NONSENSE\r\n\r\n", b"\r\n\r\n\r\n", b"\n", b"\r", b"\0" * 20, b"\x80" * 9, b"GET / HTTP/1.1", b"SSH-2.0-x\r\n",
    b"*1\r\n$4\r\nPING\r\n", b"{}", b"\xef\xbb\xbf",
)  # fmt: skip


class Ending(Enum):
    """What the client does when everything is sent."""

    FINISH = "finishes sending and reads on"
    LEAVE = "closes without waiting for its answers"
    RESET = "resets the connection"
    STALL = "sends no more and waits"


@dataclass(frozen=True)
class Input:
    """One connection of the fuzzer.

    Attributes:
        pieces: sent one after the other.
        pauses: turns of the event loop after each piece.
        ending: what follows.
    """

    pieces: list[bytes]
    pauses: list[int]
    ending: Ending

    @property
    def sent(self) -> bytes:
        """Everything, in order."""
        return b"".join(self.pieces)


def make_input(seed: int, *, stalls: bool = True) -> Input:
    """The input of a seed, always the same."""
    random = Random(seed)
    count = random.choice((1, 1, 1, 2, 2, 3, 5, 8)) if random.random() < 0.97 else random.randrange(20, 60)
    messages = [_message(random, spoil=random.random() < 0.25) for _ in range(count)]
    if random.random() < 0.1:
        random.shuffle(parts := [part for message in messages for part in _fragments(random, message)])
        messages = parts
    data = b"".join(messages)
    if random.random() < 0.2:
        data = _damage(random, data)
    if random.random() < 0.15:
        data = data[: random.randrange(len(data) + 1)]
    pieces = _split(random, data)
    slow = random.random() < 0.3
    pauses = [random.choice((0, 1, 2, 5)) if slow else 0 for _ in pieces]
    endings = [Ending.FINISH] * 16 + [Ending.LEAVE] * 2 + [Ending.RESET] + [Ending.STALL] * stalls
    return Input(pieces, pauses, random.choice(endings))


# -- requests --------------------------------------------------------------------------------------------------------


def _message(random: Random, *, spoil: bool) -> bytes:
    if spoil and random.random() < 0.1:
        return random.choice(NOISE)
    method = random.choice(METHODS if spoil else METHODS[:11])
    target = random.choice(TARGETS if spoil else TARGETS[:15])
    version = random.choice(VERSIONS if spoil else VERSIONS[:13])
    lines = [random.choice(HEADERS) for _ in range(random.choice((0, 1, 2, 4)))]
    names = [line.partition(b":")[0].lower() for line in lines]
    lines = [line for index, line in enumerate(lines) if names[index] not in names[:index]]  # each once
    if b"host" not in names:
        lines.insert(0, b"Host: localhost")
    framing, body = _body(random, spoil=spoil)
    if version == b"HTTP/1.0" and framing.startswith(b"Transfer"):
        framing, body = b"", b""
    if framing:
        lines.insert(random.randrange(len(lines) + 1), framing)
    end, blank = b"\r\n", b" "
    if spoil:
        for _ in range(random.choice((0, 1, 1, 2))):
            lines.insert(random.randrange(len(lines) + 1), random.choice(BAD_HEADERS + HEADERS))
        if random.random() < 0.03:
            lines += [b"X-%d: y" % number for number in range(random.choice((100, 250, 300)))]
        end = random.choice((b"\r\n",) * 12 + (b"\n", b"\r", b"\r\r\n", b"\n\r"))
        blank = random.choice((b" ",) * 12 + (b"  ", b"\t", b""))
    return end.join([blank.join((method, target, version)), *lines, b"", b""]) + body


def _body(random: Random, *, spoil: bool) -> tuple[bytes, bytes]:
    size = random.choice((0, 1, 5, 20, 100, 700, 2500, 9000, 20_000, 21_000))
    body = random.choice((b"x", b"0\r\n\r\n", b"GET /ping HTTP/1.1\r\n\r\n", random.randbytes(7))) * (size // 4 + 1)
    body = body[:size]
    kind = random.random()
    if kind < 0.15:
        return b"", b"" if random.random() < 0.8 else body  # sent all the same
    if kind < 0.6:
        length = len(body)
        if spoil and random.random() < 0.4:
            length = random.choice((0, max(0, length - 3), length + 1, length + 40, 21_000, 2_000_000))
        return random.choice((b"Content-Length: %d", b"content-length:%d", b"Content-Length: \t%d ")) % length, body
    coding = b"Transfer-Encoding: " + random.choice((b"chunked", b"chunked", b"Chunked"))
    return coding, _chunks(random, body, spoil=spoil)


def _chunks(random: Random, body: bytes, *, spoil: bool) -> bytes:
    chunks = b""
    while body:
        size = random.choice((1, 3, 16, 255, 5000))
        chunk, body = body[:size], body[size:]
        digits = random.choice((b"%x", b"%X", b"0%x")) % len(chunk)
        end = b"\r\n"
        if spoil and random.random() < 0.1:
            digits = random.choice((b"g", b"", b"-1", b"0x1", b"%x " % len(chunk), b"f" * 16, b"f" * 17, b"1", b"ffff"))
            end = random.choice((b"\r\n", b"\n", b"", b"x\r\n", b"\r"))
        extension = random.choice(EXTENSIONS if spoil else EXTENSIONS[:6])
        chunks += digits + extension + b"\r\n" + chunk + end
    last = random.choice((b"0", b"0", b"000", b"0;last"))
    trailers = random.choice(TRAILERS if spoil else TRAILERS[:5])
    return chunks + last + b"\r\n" + trailers + (b"" if spoil and random.random() < 0.1 else b"\r\n")


# -- damage and cuts -------------------------------------------------------------------------------------------------


def _fragments(random: Random, message: bytes) -> list[bytes]:
    head, _, body = message.partition(b"\r\n\r\n")
    return [head, b"\r\n\r\n", body] if random.random() < 0.5 else [line + b"\r\n" for line in message.split(b"\r\n")]


def _damage(random: Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        if not spoilt:
            break
        start = random.randrange(len(spoilt))
        end = min(len(spoilt), start + random.choice((1, 1, 2, 8, 50)))
        match random.randrange(5):
            case 0:
                spoilt[start] ^= 1 << random.randrange(8)
            case 1:
                del spoilt[start:end]
            case 2:
                spoilt[start:start] = random.choice((b"\r", b"\n", b"\0", b" ", b"\r\n", b":", random.randbytes(3)))
            case 3:
                spoilt[start:start] = spoilt[start:end]
            case _:
                piece = spoilt[start:end]
                del spoilt[start:end]
                place = random.randrange(len(spoilt) + 1)
                spoilt[place:place] = piece
    return bytes(spoilt)


def _split(random: Random, data: bytes) -> list[bytes]:
    kind = random.random()
    if not data or kind < 0.35:
        return [data] if data else []
    if kind < 0.45 and len(data) < 400:
        return [data[position : position + 1] for position in range(len(data))]
    if kind < 0.6:
        pieces = data.split(b"\r\n", 20)
        return [piece + b"\r\n" for piece in pieces[:-1]] + [pieces[-1]] * bool(pieces[-1])
    cuts = sorted(random.sample(range(1, len(data)), min(len(data) - 1, random.choice((1, 2, 3, 8)))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
