"""What to send, and where."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mariner.errors import ConfigurationError

__all__ = ["Body", "Target", "make_target", "read_body"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries.

    Attributes:
        data: the bytes.
        content_type: of the bytes, "" for none.
    """

    data: bytes = field(default=b"", repr=False)
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One request, ready to be written.

    Attributes:
        url: as the user wrote it.
        host: to connect to.
        port: to connect to.
        tls: whether the connection is encrypted.
        request: head and body.
    """

    url: str
    host: str
    port: int
    tls: bool
    request: bytes = field(repr=False)


def read_body(text: str | None, file: Path | None) -> Body | None:
    """The body from a command line; None if there is none.

    Args:
        text: the body itself.
        file: a file that holds it; its name says of which type it is.

    Raises:
        ConfigurationError: both were given, or the file cannot be read.
    """
    if text is not None and file is not None:
        raise ConfigurationError("Give --data or --file, not both: a request has one body.")
    if file is not None:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"The body cannot be read from {file}: {error.strerror}.") from error
        return Body(data, mimetypes.guess_type(file.name)[0] or "application/octet-stream")
    if text is None:
        return None
    try:
        json.loads(text)
    except ValueError:
        return Body(text.encode(), "text/plain; charset=utf-8")
    return Body(text.encode(), "application/json")


def make_target(
    url: str, *, method: str | None = None, headers: Sequence[str] = (), body: Body | None = None
) -> Target:
    """The request for a URL.

    Args:
        url: ``http`` or ``https``; ``host:port/path`` will do.
        method: POST if there is a body, else GET.
        headers: lines ``Name: value``; they replace those that would be sent anyway.
        body: what the request carries.

    Raises:
        ConfigurationError: the URL, a header or the method cannot be sent.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url} is no URL: {error}.") from error
    if parts.scheme not in _PORTS or not host:
        raise ConfigurationError(
            f"{url} cannot be measured.", hint="Give a URL like http://127.0.0.1:8080/predictions/m."
        )
    method = (method or ("GET" if body is None else "POST")).upper()
    if method in {"HEAD", "CONNECT"} or not method.isalpha():
        raise ConfigurationError(f"The method {method} cannot be measured.")
    lines = {"host": f"Host: {parts.netloc.rpartition('@')[2]}", "user-agent": "User-Agent: mariner-bench"}
    if body is not None:
        if body.content_type:
            lines["content-type"] = f"Content-Type: {body.content_type}"
        lines["content-length"] = f"Content-Length: {len(body.data)}"
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip() or not header.isprintable():
            raise ConfigurationError(f"{header!r} is no header.", hint='Write it as -H "Name: value".')
        lines[name.strip().lower()] = f"{name.strip()}: {value.strip()}"
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    try:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines.values(), "", ""]).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"HTTP cannot carry {error.object[error.start : error.end]!r}.") from error
    data = b"" if body is None else body.data
    return Target(url, host, port or _PORTS[parts.scheme], parts.scheme == "https", head + data)
