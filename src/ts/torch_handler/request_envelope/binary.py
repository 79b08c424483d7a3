"""The extension ``binary_tensor_data`` of the Open Inference Protocol: tensors as bytes behind the JSON. No envelope.

Little-endian, row by row, without padding; an element of type BYTES is its length in four bytes, then its bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from ts.torch_handler.request_envelope.base import MalformedRequest, json_body

__all__ = ["LENGTH_HEADER", "BinaryBody", "encode_tensor", "pack_response"]

LENGTH_HEADER = "Inference-Header-Content-Length"  # bytes of the JSON part
_SIZE = "binary_data_size"  # parameter of a tensor whose data follow the JSON
_LENGTH = struct.Struct("<I")

_CODES = MappingProxyType(
    {
        "BOOL": "?",
        **{f"INT{bits}": code for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))},
        **{f"UINT{bits}": code for bits, code in ((8, "B"), (16, "H"), (32, "I"), (64, "Q"))},
        **{f"FP{bits}": code for bits, code in ((16, "e"), (32, "f"), (64, "d"))},
    }
)


class BinaryBody:
    """The body of a request that came with the header, to be read when its turn comes.

    Args:
        body: JSON and tensors.
        length: value of the header.
    """

    def __init__(self, body: bytes | bytearray | memoryview, length: str) -> None:
        self._body = bytes(body)
        self._length = length

    def read(self) -> dict[str, Any]:
        """The request as it would be if all of it were JSON; elements of type BYTES are bytes.

        Raises:
            MalformedRequest: lengths contradict each other, or a tensor cannot be decoded.
        """
        text = self._length.strip()
        if not (text.isascii() and text.isdigit() and 0 < int(text[:18]) <= len(self._body)):
            raise MalformedRequest(
                f"{LENGTH_HEADER} is {text!r}; it must be the length of the JSON part, "
                f"at most that of the body ({len(self._body)})."
            )
        end = int(text)
        request = json_body(self._body[:end])
        inputs = request.get("inputs")
        for tensor in inputs if isinstance(inputs, list) else ():
            size = _size_of(tensor)
            if size is None:
                continue
            raw, end = self._body[end : end + size], end + size
            if len(raw) < size:
                raise MalformedRequest(f"Input {tensor.get('name')!r}: the body ends before its {size} bytes.")
            tensor["data"] = list(_decode(tensor, raw))
        if end < len(self._body):
            raise MalformedRequest(f"{len(self._body) - end} bytes of the body belong to no input.")
        return request


def _size_of(tensor: Any) -> int | None:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get(_SIZE) if isinstance(parameters, dict) else None
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise MalformedRequest(f"Input {tensor.get('name')!r}: {_SIZE} must be a number of bytes, not {size!r}.")
    if "data" in tensor:
        raise MalformedRequest(f"Input {tensor.get('name')!r} has both data and {_SIZE}.")
    return size


def _decode(tensor: dict[str, Any], raw: bytes) -> Sequence[Any]:
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if datatype == "BYTES":
        return list(_split(name, raw))
    code = "H" if datatype == "BF16" else _CODES.get(str(datatype))
    if code is None:
        raise MalformedRequest(f"Input {name!r}: datatype {datatype!r} is unknown.")
    count, rest = divmod(len(raw), struct.calcsize(f"<{code}"))
    if rest:
        raise MalformedRequest(f"Input {name!r}: {len(raw)} bytes are no whole number of {datatype} elements.")
    values = struct.unpack(f"<{count}{code}", raw)
    if datatype == "BF16":  # the upper half of an FP32
        return struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(value << 16 for value in values)))
    return values


def _split(name: Any, raw: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        if start > len(raw):
            raise MalformedRequest(f"Input {name!r}: an element ends within its length.")
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > len(raw):
            raise MalformedRequest(f"Input {name!r}: an element is longer than what is left of the input.")
        yield raw[start:position]


def encode_tensor(datatype: str, data: Sequence[Any]) -> bytes:
    """The elements of a tensor as bytes.

    Raises:
        struct.error: an element does not fit into the type.
    """
    if datatype != "BYTES":
        return struct.pack(f"<{len(data)}{_CODES[datatype]}", *data)
    pieces: list[bytes] = []
    for value in data:
        raw = bytes(value) if isinstance(value, (bytes, bytearray)) else _text(value).encode()
        pieces += (_LENGTH.pack(len(raw)), raw)
    return b"".join(pieces)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def pack_response(response: dict[str, Any], binary: Sequence[bytes | None]) -> tuple[bytes, int]:
    """A response whose JSON is followed by tensors.

    Args:
        response: its JSON; outputs that follow are without data.
        binary: what follows for each output, None for those whose data the JSON holds.

    Returns:
        The body, and the length of its JSON part.
    """
    for tensor, raw in zip(response["outputs"], binary, strict=True):
        if raw is not None:
            tensor["parameters"] = {_SIZE: len(raw)}
    head = json.dumps(response).encode()
    return b"".join([head, *(raw for raw in binary if raw is not None)]), len(head)
