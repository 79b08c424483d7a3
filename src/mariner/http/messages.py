"""HTTP bodies and headers ⇄ the server's requests, replies and errors. No routes, no sockets."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, unquote_plus, unquote_to_bytes

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mariner.bodies import Slot
from mariner.errors import BadRequest, InternalError, MarinerError, PredictionFailed
from mariner.http.exchange import Exchange, HeaderPairs
from mariner.jobs import Outcome, Part, Reply, Request, Shared, new_part, new_request, unpack_headers

__all__ = [
    "JSON",
    "Response",
    "decode_path",
    "json_response",
    "media_type",
    "query_values",
    "read_object",
    "read_parameters",
    "read_query",
    "read_request",
    "status_response",
    "write_error",
    "write_outcome",
]

logger = logging.getLogger(__name__)

JSON: HeaderPairs = (("content-type", "application/json"),)

_KSERVE = (b"/v1/", b"/v2/")  # where clients look for the message under the name ``error``
_MAX_PAIRS = 1024  # of a query or a form
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_DEFAULT_PART_TYPE = "application/octet-stream"  # of a file whose part names none
_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")
_SEPARATORS = re.compile(rb"[&;]")


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer of a route."""

    status: int = 200
    body: bytes = b""
    headers: HeaderPairs = ()


def json_response(value: Any, status: int = 200) -> Response:
    """The server's own JSON: two spaces, a newline at the end."""
    return Response(status, _json(value), JSON)


def status_response(text: str, status: int = 200) -> Response:
    """``{"status": text}``, the answer of calls that return nothing else."""
    return json_response({"status": text}, status)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


# -- paths and queries -----------------------------------------------------------------------------------------------


def decode_path(raw: bytes) -> str:
    """A path without its percent escapes.

    Raises:
        BadRequest: an escape is malformed.
    """
    if b"%" not in raw:
        return raw.decode("latin-1")  # the parser lets nothing but ASCII pass
    if _BAD_ESCAPE.search(raw):
        raise BadRequest("The path holds a % that is not followed by two hexadecimal digits.")
    return unquote(raw.decode("latin-1"))


def read_query(raw: bytes) -> dict[str, str]:
    """Query parameters by name; of equal names the first wins. ``&`` and ``;`` separate, ``+`` is a space.

    Raises:
        BadRequest: an escape is malformed, or there are too many parameters.
    """
    parameters: dict[str, str] = {}
    for name, value in _query_pairs(raw):
        parameters.setdefault(name, value)
    return parameters


def query_values(raw: bytes, name: str) -> list[str]:
    """All values of one query parameter.

    Raises:
        BadRequest: as :func:`read_query`.
    """
    return [value for key, value in _query_pairs(raw) if key == name]


def _query_pairs(raw: bytes) -> Iterator[tuple[str, str]]:
    if not raw:
        return
    if _BAD_ESCAPE.search(raw):
        raise BadRequest("The query holds a % that is not followed by two hexadecimal digits.")
    pieces = _SEPARATORS.split(raw)
    if len(pieces) > _MAX_PAIRS:
        raise BadRequest(f"The query has more than {_MAX_PAIRS} parameters.")
    for piece in pieces:
        name, _, value = piece.decode("latin-1").partition("=")
        if name:
            yield unquote_plus(name), unquote_plus(value)


# -- requests --------------------------------------------------------------------------------------------------------


def media_type(exchange: Exchange) -> str:
    """The Content-Type without parameters, in the client's spelling; "" if there is none."""
    content_type = exchange.fields.get(b"content-type")
    return "" if content_type is None else _without_parameters(content_type)


@lru_cache(maxsize=128)  # clients use few, but one each
def _without_parameters(content_type: bytes) -> str:
    return content_type.partition(b";")[0].strip().decode("latin-1")


def read_request(
    exchange: Exchange, injected: tuple[bytes, ...] = (), *, with_query: bool = False
) -> tuple[Request, Slot | None]:
    """The request as the handler is to see it, and the shared memory its body lies in.

    Args:
        exchange: complete.
        injected: names and values in turn that the handler finds among the headers, whatever the client sent.
        with_query: query parameters become parts, too; parts of the body with the same name win.

    Raises:
        BadRequest: the body is not what its content type says.
    """
    packed, media, is_form = _read_head(exchange, injected)
    body = exchange.body
    slot = None
    if isinstance(body, Slot):
        slot = body
        parts = [Part("body", media, Shared(slot.offset, slot.size))]
    elif is_form and body:
        parts = _read_form(exchange, body)
    else:
        parts = [new_part(("body", media, body))]
    if with_query and (query := exchange.raw_query):
        parts[:0] = [Part(name, "", value.encode()) for name, value in _query_pairs(query)]
    return new_request((exchange.id, packed, parts, math.inf)), slot


def _read_head(exchange: Exchange, injected: tuple[bytes, ...]) -> tuple[bytes, str, bool]:
    """The packed headers, the media type, and whether the body is a form; a head that is known is read once."""
    known = exchange.readings
    if known is not None and (reading := known.get(injected)) is not None:
        return reading
    media = media_type(exchange)
    reading = _pack_headers(exchange, injected), media, _is_form(exchange)
    if known is not None:
        known[injected] = reading
    return reading


def _pack_headers(exchange: Exchange, injected: tuple[bytes, ...]) -> bytes:
    headers: Sequence[bytes] = exchange.raw_headers
    if injected:
        if not exchange.fields.keys().isdisjoint(injected[::2]):
            headers = _without(headers, injected[::2])
        headers = (*headers, *injected)
    return b"\0".join(headers)


def _without(headers: Sequence[bytes], names: Sequence[bytes]) -> list[bytes]:
    kept: list[bytes] = []
    for name, value in zip(headers[::2], headers[1::2], strict=True):
        if name.lower() not in names:
            kept += (name, value)
    return kept


def _is_form(exchange: Exchange) -> bool:
    kind = media_type(exchange).lower()
    return kind == _URLENCODED or (kind == _MULTIPART and bool(_boundary(exchange)))


def _read_form(exchange: Exchange, body: bytes | bytearray) -> list[Part]:
    """The fields of a form."""
    if media_type(exchange).lower() == _URLENCODED:
        return _read_urlencoded(body)
    return _read_multipart(body, _boundary(exchange))


def _boundary(exchange: Exchange) -> bytes:
    """What separates the parts of a multipart body; nothing if the client forgot to say it."""
    return parse_options_header(exchange.fields[b"content-type"])[1].get(b"boundary", b"")


def _read_urlencoded(body: bytes | bytearray) -> list[Part]:
    if _BAD_ESCAPE.search(body):
        raise BadRequest("The form holds a % that is not followed by two hexadecimal digits.")
    pieces = bytes(body).rstrip(b"\r\n").split(b"&")
    if len(pieces) > _MAX_PAIRS:
        raise BadRequest(f"The form has more than {_MAX_PAIRS} fields.")
    if b"=" not in pieces[-1]:
        del pieces[-1]  # TorchServe hands a name to the handler once it has seen what ends it
    parts = []
    for piece in pieces:
        name, _, value = piece.replace(b"+", b" ").partition(b"=")
        if name:
            parts.append(Part(_text(unquote_to_bytes(name)), "", unquote_to_bytes(value)))
    return parts


class _MultipartReader:
    """Collects what the multipart parser finds."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""
        self._data: list[bytes] = []

    def on_part_begin(self) -> None:
        if len(self.parts) >= _MAX_PAIRS:
            raise BadRequest(f"The form has more than {_MAX_PAIRS} parts.")
        self._headers = {}
        self._data = []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if kind != b"form-data" or not name:
            raise BadRequest("The multipart body has a part without a name.")
        content_type = ""
        if b"filename" in options:
            named = self._headers.get(b"content-type", b"").partition(b";")[0].strip()
            content_type = named.decode("latin-1") or _DEFAULT_PART_TYPE
        self.parts.append(Part(_text(name), content_type, b"".join(self._data)))

    def on_end(self) -> None:
        self.complete = True


def _read_multipart(body: bytes | bytearray, boundary: bytes) -> list[Part]:
    reader = _MultipartReader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_part_data": reader.on_part_data,
                "on_part_end": reader.on_part_end,
                "on_end": reader.on_end,
            },
        )
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"The multipart body is malformed: {error}") from error
    if not reader.complete:
        raise BadRequest("The multipart body is malformed: it ends before its closing boundary.")
    return reader.parts


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def read_parameters(exchange: Exchange, names: Collection[str]) -> dict[str, str]:
    """Parameters of a management call: those of a JSON body alone, else of the query and of a form.

    Args:
        exchange: complete.
        names: of the parameters that are looked for; what else a JSON body holds may be of any type.

    Raises:
        BadRequest: the body is not what its content type says.
    """
    media = media_type(exchange)
    if media.lower() == "application/json" and exchange.body:
        return _read_json_parameters(exchange.take_body(), names)
    parameters = read_query(exchange.raw_query)
    body = exchange.take_body()
    if body and _is_form(exchange):
        for name, _, value in _read_form(exchange, body):
            assert isinstance(value, bytes)
            parameters.setdefault(name, _text(value))
    return parameters


def read_object(exchange: Exchange) -> dict[str, Any]:
    """The JSON object that is the body, whatever its content type; no body is an empty one.

    Raises:
        BadRequest: the body is something else.
    """
    return _load_object(exchange.take_body() or b"{}")


def _load_object(body: bytes | bytearray) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    return value


def _read_json_parameters(body: bytes | bytearray, names: Collection[str]) -> dict[str, str]:
    parameters = {}
    for name, item in _load_object(body).items():
        if isinstance(item, bool):
            parameters[name] = "true" if item else "false"
        elif isinstance(item, (str, int, float)):
            parameters[name] = str(item)
        elif item is not None and name in names:
            raise BadRequest(f"Parameter {name} must be a string, a number or a boolean.")
    return parameters


# -- answers ---------------------------------------------------------------------------------------------------------


def write_error(exchange: Exchange, error: MarinerError, headers: HeaderPairs = (), lines: bytes = b"") -> None:
    """Answers with an error; does nothing if an answer has begun.

    Args:
        exchange: the request.
        error: what happened.
        headers: of the answer.
        lines: complete header lines that it gets besides.
    """
    body: dict[str, Any] = {"code": error.status, "type": error.wire_name, "message": error.message}
    if error.reason:
        body["reason"] = error.reason
    if error.hint:
        body["hint"] = error.hint
    if error.death_id:
        body["death_id"] = error.death_id
    body["request_id"] = exchange.id
    if exchange.target.startswith(_KSERVE):
        body["error"] = error.message
    if error.retry_after is not None:
        headers = (*headers, ("Retry-After", str(math.ceil(error.retry_after))))
    exchange.respond(error.status, JSON + headers, _json(body), lines=lines)


def write_outcome(exchange: Exchange, outcome: Outcome, lines: bytes = b"") -> None:
    """Answers with what became of a job; pieces of a stream are written as they come.

    Args:
        exchange: the request.
        outcome: the answer, a piece of it, or why there is none.
        lines: complete header lines that the answer gets besides.
    """
    if not isinstance(outcome, Reply):
        _write_failure(exchange, outcome, lines)
        return
    _, body, status, phrase, packed, more, failed, _ = outcome
    if failed:
        _write_failure(exchange, PredictionFailed(status, str(body, "utf-8", "replace")), lines)
        return
    try:
        if exchange.streaming:
            if more:
                exchange.send_chunk(body)
            else:
                exchange.end_stream(body)
            return
        headers = _reply_headers(packed) if packed else ()
        if more:
            exchange.start_stream(status, headers, body, phrase, lines)
        else:
            exchange.respond(status, headers, body, phrase, lines)
    except ValueError as error:
        logger.error("Request %s: the handler's answer cannot be sent: %s", exchange.id, error)  # noqa: TRY400 - no defect
        write_error(exchange, InternalError(f"The handler's answer cannot be sent. {error}."))


def _write_failure(exchange: Exchange, error: MarinerError, lines: bytes) -> None:
    if exchange.streaming:
        exchange.abort()  # the status line is gone: an incomplete answer is the only sign left
        return
    try:
        write_error(exchange, error, lines=lines)
    except ValueError:  # a handler may choose any number as its status
        error.status = 500
        write_error(exchange, error, lines=lines)


@lru_cache(maxsize=256)
def _reply_headers(packed: bytes) -> HeaderPairs:
    return tuple(unpack_headers(packed))
