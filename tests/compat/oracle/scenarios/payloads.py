"""From the body of a request to what the handler gets."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from oracle.differences import Differs, error, fixed, more
from oracle.exchange import Exchange

__all__ = ["PAYLOADS"]

_ALL = bytes(range(256))
_LOOKS = "/predictions/looks"
_FORM = "application/x-www-form-urlencoded"
_PARTS = "multipart/form-data; boundary=limit"


def _part(name: str, value: bytes, file: str = "", content_type: str = "") -> bytes:
    lines = [f'--limit\r\nContent-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")]
    lines += [f"Content-Type: {content_type}"] if content_type else []
    return "\r\n".join([*lines, "", ""]).encode() + value + b"\r\n"


def _refused(message: str) -> Differs:
    because = fixed("A body that is not what its content type says is answered 400.")
    return error(because, "400 Bad Request", "BadRequestException", message)


_END = b"--limit--\r\n"

PAYLOADS = (
    Exchange(
        "JSON", "POST", _LOOKS, (43,), body=b'{"a": [1, 2.5, null, "caf\xc3\xa9"]}', content_type="application/json"
    ),
    Exchange("JSON with a charset", "POST", _LOOKS, (43,), body=b"[1]", content_type="application/json; charset=utf-8"),
    Exchange(
        "JSON in another casing",
        "POST",
        _LOOKS,
        body=b"[1]",
        content_type="Application/JSON",
        differs=Differs(
            more("Content types are read in any casing."),
            texts={'      "bytearray": "[1]"': '      "list": [\n        1\n      ]'},
        ),
    ),
    Exchange("broken JSON", "POST", _LOOKS, (45,), body=b"{broken", content_type="application/json"),
    Exchange("text", "POST", _LOOKS, (46,), body=b"caf\xc3\xa9", content_type="text/plain"),
    Exchange("text that is none", "POST", _LOOKS, body=b"\xff", content_type="text/plain"),
    Exchange("bytes", "POST", _LOOKS, (47,), body=_ALL, content_type="application/octet-stream"),
    Exchange("no content type", "POST", _LOOKS, (47,), body=b"abc"),
    Exchange("an unknown content type", "POST", _LOOKS, body=b"abc", content_type="image/png"),
    Exchange(
        "a text file",
        "POST",
        _LOOKS,
        (48,),
        body=_part("data", b"abc", "a.txt", "text/plain") + _END,
        content_type=_PARTS,
    ),
    Exchange(
        "a file of bytes",
        "POST",
        _LOOKS,
        (48,),
        body=_part("data", _ALL, "a.bin", "application/octet-stream") + _END,
        content_type=_PARTS,
    ),
    Exchange(
        "a file of JSON",
        "POST",
        _LOOKS,
        body=_part("data", b"[1]", "a.json", "application/json") + _END,
        content_type=_PARTS,
    ),
    Exchange("a file without a type", "POST", _LOOKS, body=_part("data", b"abc", "a") + _END, content_type=_PARTS),
    Exchange("a field of JSON", "POST", _LOOKS, (49,), body=_part("data", b'{"a": 1}') + _END, content_type=_PARTS),
    Exchange(
        "a field with a type",
        "POST",
        _LOOKS,
        (49,),
        body=_part("data", b'{"a": 1}', content_type="application/json") + _END,
        content_type=_PARTS,
    ),
    Exchange(
        "two files of one name",
        "POST",
        _LOOKS,
        (51,),
        body=_part("data", b"1", "a", "text/plain") + _part("data", b"2", "b", "text/plain") + _END,
        content_type=_PARTS,
    ),
    Exchange("two fields", "POST", _LOOKS, body=_part("b", b"1") + _part("a", b"2") + _END, content_type=_PARTS),
    Exchange(
        "parts without an end",
        "POST",
        _LOOKS,
        body=_part("data", b"1"),
        content_type=_PARTS,
        differs=_refused("The multipart body is malformed: it ends before its closing boundary."),
    ),
    Exchange(
        "parts without a beginning",
        "POST",
        _LOOKS,
        body=b"abc",
        content_type=_PARTS,
        differs=_refused("The multipart body is malformed: Expected boundary character 45, got 97 at index 2"),
    ),
    Exchange("parts without a boundary", "POST", _LOOKS, body=b"abc", content_type="multipart/form-data"),
    Exchange(
        "a form of all bytes",
        "POST",
        _LOOKS,
        (50,),
        body=b"data=" + quote_from_bytes(_ALL, safe="").encode(),
        content_type=_FORM,
    ),
    Exchange("a form with plus signs", "POST", _LOOKS, (50,), body=b"a=1+2&b=%2B&a=3", content_type=_FORM),
    Exchange("JSON as a form", "POST", _LOOKS, body=b'{"a": 1}', content_type=_FORM),
    Exchange("a form without values", "POST", _LOOKS, body=b"a&b=&c", content_type=_FORM),
    Exchange(
        "a form with a broken escape",
        "POST",
        _LOOKS,
        body=b"a=%zz",
        content_type=_FORM,
        differs=_refused("The form holds a % that is not followed by two hexadecimal digits."),
    ),
    Exchange("an empty body", "POST", _LOOKS, headers={"Content-Length": "0"}),
    Exchange("a query", "POST", f"{_LOOKS}?x=1", (52,), body=b"abc"),
    Exchange("a query with semicolons", "POST", "/models/looks/invoke?x=1;y=a+b&x=2", body=b"abc"),
    Exchange("a query and a body of one name", "POST", "/models/looks/invoke?body=query", body=b"abc"),
    Exchange(
        "headers", "POST", _LOOKS, (54,), body=b"abc", headers={"X-Custom": "1", "x-lower": "2", "url_path": "mine"}
    ),
)
