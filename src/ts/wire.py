"""What server and worker say to each other, and its bytes. No I/O; standard library only.

The one module that both processes share. A *frame* is a header and a payload; several batches travel in one
``PREDICT`` frame and several replies in one ``REPLIES`` frame, so frames are not batches. Every job carries its id and
every reply repeats it: replies are matched by id, never by order.

===========  =========  ==================================================================
kind         direction  payload
===========  =========  ==================================================================
LOAD         → worker   JSON: :class:`Load`
PREDICT      → worker   batches of jobs, binary (below)
DROP         → worker   JSON: ids of jobs of a continuous batch that nobody waits for any more
STARTED      ← worker   JSON: ``{"pid": int}``, once the worker can take ``LOAD``
LOADED       ← worker   JSON: :class:`Loaded`
REPLIES      ← worker   replies, binary (below)
METRICS      ← worker   JSON: list of :class:`Sample` rows
===========  =========  ==================================================================

All integers are little-endian. Text is UTF-8, except header names and values, which are Latin-1 as HTTP has them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

__all__ = [
    "STACK_SIGNAL",
    "VERSION",
    "Batch",
    "Frame",
    "FrameDecoder",
    "FrameKind",
    "Load",
    "Loaded",
    "Part",
    "Reply",
    "Request",
    "Sample",
    "Shared",
    "WireError",
    "decode_predict",
    "decode_replies",
    "encode_frame",
    "encode_json",
    "encode_predict",
    "encode_reply",
    "new_part",
    "new_reply",
    "new_request",
    "pack_headers",
    "unpack_headers",
]

VERSION = 2

STACK_SIGNAL = 61
"""Asks a worker for its stack, on its standard error. A real-time signal: handlers and libraries use the others."""

Buffer = bytes | bytearray | memoryview


class FrameKind(IntEnum):
    """What a frame carries; below 16 it travels to the worker, from 16 on to the server."""

    LOAD = 1
    PREDICT = 2
    DROP = 3
    STARTED = 16
    LOADED = 17
    REPLIES = 18
    METRICS = 19


class WireError(Exception):
    """The peer sent bytes that are no frame, a frame of another version, or one that is too long."""


# -- values ----------------------------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """A body that lies in the shared-memory arena instead of in the frame."""

    offset: int
    size: int


class Part(NamedTuple):
    """One named parameter of a request: the raw body is called ``body``, a form field by its own name.

    Attributes:
        name: parameter name.
        content_type: media type without parameters, "" if the client sent none.
        value: the bytes, or where they lie.
    """

    name: str
    content_type: str
    value: Buffer | Shared


class Request(NamedTuple):
    """One inference as the handler is to see it.

    Attributes:
        id: the ``x-request-id`` of the answer; unique.
        headers: request headers packed by :func:`pack_headers`; unpacked only if a handler asks.
        parts: parameters in order; of equal names the last wins.
        deadline: when nobody wants the answer any more, on the clock of the process that holds the request; infinity
            for never. It travels as the seconds that are left.
    """

    id: str
    headers: bytes
    parts: Sequence[Part]
    deadline: float = math.inf


class Batch(NamedTuple):
    """Requests that go through the handler in one call, each with its job id.

    Attributes:
        id: grows by one per batch of a worker, from 1; 0 means that no batch is running.
        jobs: pairs of job id and request.
    """

    id: int
    jobs: Sequence[tuple[int, Request]]


class Reply(NamedTuple):
    """One answer, or one piece of a streamed answer.

    Attributes:
        job_id: the job it belongs to.
        body: bytes for the client; the message if ``failed``.
        status: HTTP status; 0 if the worker did not run the job, because nobody wanted it any more.
        phrase: reason phrase chosen by the handler, "" for the standard one.
        headers: response headers packed by :func:`pack_headers`.
        more: more pieces follow.
        failed: the handler failed; ``body`` is an error message, not a result.
        handler_seconds: how long the handler ran for the whole batch.
    """

    job_id: int
    body: Buffer
    status: int = 200
    phrase: str = ""
    headers: bytes = b""
    more: bool = False
    failed: bool = False
    handler_seconds: float = 0.0


# The same values without the Python code that a named tuple's own constructor is: each request needs one of each, and
# together they would take a thirtieth of the time that the server has for a small one.
new_part: Callable[[tuple[str, str, Buffer | Shared]], Part] = partial(tuple.__new__, Part)
new_request: Callable[[tuple[str, bytes, Sequence[Part], float]], Request] = partial(tuple.__new__, Request)
new_reply: Callable[[tuple[int, Buffer, int, str, bytes, bool, bool, float]], Reply] = partial(tuple.__new__, Reply)


class Sample(NamedTuple):
    """One metric update. Counters carry the increment, gauges the last value, histograms one observation each."""

    name: str
    unit: str
    type: str
    value: float
    dimensions: Sequence[tuple[str, str]]
    request_ids: str = ""


@dataclass(frozen=True)
class Load:
    """What a worker needs to load its model.

    Attributes:
        model_name: the name it is registered under.
        model_version: its version.
        model_dir: absolute path of the unpacked archive.
        handler: handler spec of the manifest or the registration (``file[:function]`` or a built-in name).
        batch_size: the configured maximum.
        gpu_id: index of the device, None on CPU.
        envelope: name of the request envelope, "" for none.
        limit_max_image_pixels: False lifts Pillow's decompression-bomb limit in vision handlers.
        decode_input_request: False hands every body over as bytes.
        max_response_size: bytes; a larger reply is answered as an error instead.
        metrics_config: path of the metrics YAML, "" for the defaults.
        poll_seconds: how long the worker looks for its next frame before it sleeps; 0 sleeps at once.
        isolate_batch_errors: a batch that fails is run again in parts, so that only guilty requests fail.
        async_communication: batches that arrive while others run are begun at once, on one event loop.
        continuous_batching: requests run side by side, step by step, until the handler lets each of them end.
        every_metric: each update of a metric is sent, and the time of each batch; else what can be added up is.
        shared_weights: file that the workers of the version may have their weights in, "" for each its own.
    """

    model_name: str
    model_dir: str
    handler: str
    model_version: str = "1.0"
    batch_size: int = 1
    gpu_id: int | None = None
    envelope: str = ""
    limit_max_image_pixels: bool = True
    decode_input_request: bool = True
    max_response_size: int = 6_553_500
    metrics_config: str = ""
    poll_seconds: float = 0.0
    isolate_batch_errors: bool = False
    async_communication: bool = False
    continuous_batching: bool = False
    every_metric: bool = False
    shared_weights: str = ""


@dataclass(frozen=True)
class Loaded:
    """How loading ended.

    Attributes:
        ok: the handler is ready.
        message: "loaded model NAME", or what went wrong in one line.
        out_of_memory: loading failed for lack of (device) memory: the answer is 507 instead of 500.
        traceback: the handler's traceback, for the log only.
        exception: its class and message in one line.
        file: where it came from, see :class:`ts.faults.Place`.
        line: of that file.
        function: in that file.
    """

    ok: bool
    message: str
    out_of_memory: bool = False
    traceback: str = ""
    exception: str = ""
    file: str = ""
    line: int = 0
    function: str = ""


@dataclass(frozen=True)
class Frame:
    """One received frame; ``payload`` is a view into the decoder's chunk: use it before the next ``feed``."""

    kind: FrameKind
    payload: memoryview = field(repr=False)

    def json(self) -> Any:
        """The payload of a control frame."""
        return json.loads(bytes(self.payload))


# -- headers ---------------------------------------------------------------------------------------------------------


def pack_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """Packs name-value pairs; the NUL that separates them cannot occur in an HTTP header.

    Raises:
        ValueError: a name or value holds a NUL, CR or LF, or a character outside Latin-1.
    """
    flat: list[str] = []
    for name, value in headers:
        for text in (name, value):
            if "\0" in text or "\r" in text or "\n" in text:
                raise ValueError(f"Header {name!r} holds a control character.")
        flat += (name, value)
    return "\0".join(flat).encode("latin-1")


def unpack_headers(packed: Buffer) -> list[tuple[str, str]]:
    """The pairs that :func:`pack_headers` packed, in order."""
    if not packed:
        return []
    flat = str(packed, "latin-1").split("\0")
    return list(zip(flat[::2], flat[1::2], strict=True))


# -- frames ----------------------------------------------------------------------------------------------------------

_FRAME = struct.Struct("<IBBH")  # payload length, version, kind, reserved


def encode_frame(kind: FrameKind, parts: Iterable[Buffer]) -> list[Buffer]:
    """A frame as buffers to be written in order: vectored writes need no copy."""
    buffers: list[Buffer] = [b"", *parts]
    buffers[0] = _FRAME.pack(sum(map(len, buffers)), VERSION, kind, 0)
    return buffers


def encode_json(kind: FrameKind, value: Load | Loaded | dict[str, Any] | list[Any]) -> list[Buffer]:
    """A control frame."""
    plain = asdict(value) if isinstance(value, (Load, Loaded)) else value
    return encode_frame(kind, [json.dumps(plain).encode()])


class FrameDecoder:
    """Bytes in, frames out.

    Args:
        limit: longest payload to accept in bytes; protects against a peer that has lost its framing.
    """

    def __init__(self, limit: int = 1 << 31) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._needed = _FRAME.size

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """The frames that are complete with ``data``; exhaust the iterator before the next call.

        Raises:
            WireError: the bytes are not frames of this version.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data, self._rest = self._rest, bytearray()
        view = memoryview(data)
        position, end = 0, len(view)
        while end - position >= _FRAME.size:
            length, version, kind, _ = _FRAME.unpack_from(view, position)
            if version != VERSION:
                raise WireError(f"The peer speaks wire version {version}, this side {VERSION}.")
            if length > self._limit:
                raise WireError(f"A frame of {length} bytes is over the limit of {self._limit}.")
            start = position + _FRAME.size
            if end - start < length:
                self._needed = _FRAME.size + length
                break
            try:
                yield Frame(FrameKind(kind), view[start : start + length])
            except ValueError:
                raise WireError(f"No frame is of kind {kind}.") from None
            position = start + length
        else:
            self._needed = _FRAME.size
        if position < end:
            self._rest = bytearray(view[position:])


# -- predict ---------------------------------------------------------------------------------------------------------

_BATCH = struct.Struct("<QI")  # batch id, jobs
_JOB = struct.Struct("<QHHId")  # job id, length of the request id, parts, length of the headers, seconds left
_PART = struct.Struct("<IHxxIQ")  # length of the name, of the content type, of the value, offset in shared memory
_INLINE = (1 << 64) - 1
_COPIED = 8192  # bytes; a shorter value is cheaper to copy than to view


def encode_predict(batches: Iterable[Batch], now: float = 0.0) -> list[Buffer]:
    """A frame of batches, as buffers; ``now`` is the time on the clock of their deadlines."""
    buffers: list[Buffer] = []
    add = buffers.append
    for batch_id, jobs in batches:
        add(_BATCH.pack(batch_id, len(jobs)))
        for job_id, request in jobs:
            request_id = request.id.encode()
            add(_JOB.pack(job_id, len(request_id), len(request.parts), len(request.headers), request.deadline - now))
            add(request_id)
            add(request.headers)
            for name, content_type, value in request.parts:
                name_bytes, type_bytes = name.encode(), content_type.encode()
                if type(value) is Shared:
                    add(_PART.pack(len(name_bytes), len(type_bytes), value.size, value.offset))
                    add(name_bytes)
                    add(type_bytes)
                else:
                    add(_PART.pack(len(name_bytes), len(type_bytes), len(value), _INLINE))
                    add(name_bytes)
                    add(type_bytes)
                    add(value)  # type: ignore[arg-type]  # Shared was handled above
    return encode_frame(FrameKind.PREDICT, buffers)


def decode_predict(payload: memoryview, now: float = 0.0) -> list[Batch]:
    """The batches of a frame; they outlive ``payload``.

    Args:
        payload: of the frame.
        now: the time on the clock that their deadlines are to be on.

    Raises:
        WireError: the payload is cut short or overlong.
    """
    data = bytes(payload)  # slicing bytes is twice as fast as slicing a view, and the receive buffer is free again
    whole = memoryview(data)
    batches = []
    position, end = 0, len(data)
    try:
        while position < end:
            batch_id, count = _BATCH.unpack_from(data, position)
            position += _BATCH.size
            jobs = []
            for _ in range(count):
                job_id, id_length, part_count, headers_length, left = _JOB.unpack_from(data, position)
                start = position + _JOB.size
                position = start + id_length
                request_id = data[start:position].decode()
                start, position = position, position + headers_length
                headers = data[start:position]
                parts = []
                for _ in range(part_count):
                    name_length, type_length, size, offset = _PART.unpack_from(data, position)
                    start = position + _PART.size
                    position = start + name_length
                    name = data[start:position].decode()
                    start, position = position, position + type_length
                    content_type = data[start:position].decode()
                    value: Buffer | Shared
                    if offset != _INLINE:
                        value = Shared(offset, size)
                    else:
                        start, position = position, position + size
                        value = data[start:position] if size < _COPIED else whole[start:position]
                    parts.append(new_part((name, content_type, value)))
                jobs.append((job_id, new_request((request_id, headers, parts, now + left))))
            batches.append(Batch(batch_id, jobs))
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"A PREDICT frame is damaged: {error}") from error
    if position != end:
        raise WireError("A PREDICT frame is damaged: it ends inside a value.")
    return batches


# -- replies ---------------------------------------------------------------------------------------------------------

_REPLY = struct.Struct("<QBxHHxxIIf")  # job id, flags, status, lengths of phrase, headers, body; handler seconds
_MORE, _FAILED = 1, 2


def encode_reply(reply: Reply) -> list[Buffer]:
    """One reply as buffers; several of them make a ``REPLIES`` frame (:func:`encode_frame`)."""
    job_id, body, status, phrase, headers, more, failed, seconds = reply
    flags = (_MORE if more else 0) | (_FAILED if failed else 0)
    phrase_bytes = phrase.encode("utf-8") if phrase else b""
    head = _REPLY.pack(job_id, flags, status, len(phrase_bytes), len(headers), len(body), seconds)
    if phrase_bytes or headers:
        return [head, phrase_bytes, headers, body]
    return [head, body]


def decode_replies(payload: memoryview) -> list[Reply]:
    """The replies of a frame; their bodies are copies and outlive ``payload``.

    Raises:
        WireError: the payload is cut short or overlong.
    """
    replies = []
    position, end = 0, len(payload)
    try:
        while position < end:
            job_id, flags, status, phrase_length, headers_length, size, seconds = _REPLY.unpack_from(payload, position)
            position += _REPLY.size
            phrase, headers = "", b""
            if phrase_length:
                phrase = str(payload[position : position + phrase_length], "utf-8")
                position += phrase_length
            if headers_length:
                headers = bytes(payload[position : position + headers_length])
                position += headers_length
            body = bytes(payload[position : position + size])
            position += size
            more, failed = flags & _MORE != 0, flags & _FAILED != 0
            replies.append(new_reply((job_id, body, status, phrase, headers, more, failed, seconds)))
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"A REPLIES frame is damaged: {error}") from error
    if position != end:
        raise WireError("A REPLIES frame is damaged: it ends inside a value.")
    return replies
