"""Calls of a server over HTTP: the only home of the SDK's HTTP client."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from mariner.errors import DeploymentError

if TYPE_CHECKING:
    from urllib3 import PoolManager

__all__ = ["Answer", "Client", "KeyFile", "decode", "encode", "path", "transport_errors"]

_CONNECTIONS = 64  # kept open, for as many threads
_CONNECT_TIMEOUT = 5.0  # seconds; a server of this machine accepts at once


class KeyFile:
    """The ``key_file.json`` of a server, if it has one; read again when it changes, as renewed keys are in it.

    Args:
        path: where it is, or would be.
        kind: the key that is wanted, ``inference`` or ``management``.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._kind = kind
        self._seen: tuple[int, int] | None = None
        self._key = ""

    def headers(self) -> dict[str, str]:
        """What shows the key; nothing where there is none."""
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_ino
            if seen != self._seen:
                self._key = json.loads(self._path.read_text(encoding="ascii"))[self._kind]["key"]
                self._seen = seen
        except (OSError, ValueError, KeyError):
            return {}
        return {"Authorization": f"Bearer {self._key}"}


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: of HTTP.
        body: its bytes.
    """

    status: int
    body: bytes


class Client:
    """Calls one listener. Threads may share it.

    Args:
        address: ``http://host:port``.
        keys: shows a key where there is one.
    """

    def __init__(self, address: str, keys: KeyFile | None = None) -> None:
        self.address = address.rstrip("/")
        self._keys = keys
        self._pool = _open_pool()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Makes a call and waits for its answer; see :func:`decode` for what comes back.

        Args:
            method: of HTTP.
            path: with slashes, encoded.
            body: bytes to send.
            query: parameters; those that are None are left out.
            headers: of the request.
            timeout: seconds to wait for the answer; None: the server says when it has been long enough.

        Raises:
            DeploymentError: the server refuses the call, or does not answer.
        """
        answer = self.ask(method, path, body, query=query, headers=headers, timeout=timeout)
        if answer.status >= 400:
            raise _refusal(answer)
        return decode(answer.body)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """As :meth:`call`, and returns whatever comes back.

        Raises:
            DeploymentError: the server does not answer.
        """
        import urllib3  # noqa: PLC0415 - there, since the pool is

        wanted = {key: str(value) for key, value in (query or {}).items() if value is not None}
        target = f"{self.address}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        shown = {**(self._keys.headers() if self._keys is not None else {}), **(headers or {})}
        limits = urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=timeout)
        # Only what never reached the server is sent once more: a prediction must not run twice unasked.
        again = urllib3.Retry(total=2, connect=2, read=False, redirect=False, status=False, other=False)
        try:
            response = self._pool.request(method, target, body=body, headers=shown, timeout=limits, retries=again)
        except urllib3.exceptions.HTTPError as error:
            raise DeploymentError(
                f"{method} {target} got no answer: {error}.",
                hint="See logs() for what the server says, or deploy the model again.",
            ) from error
        return Answer(response.status, response.data)


def _open_pool() -> PoolManager:
    try:
        import urllib3  # noqa: PLC0415 - describing and packaging models does without it
    except ImportError:
        raise DeploymentError(
            "Deploying from Python needs the package urllib3.", hint="Install it: pip install 'mariner-serve[sdk]'."
        ) from None
    return urllib3.PoolManager(num_pools=4, maxsize=_CONNECTIONS)


def transport_errors() -> type[Exception]:
    """What the HTTP client raises where there is no answer."""
    import urllib3  # noqa: PLC0415 - there, since the Kubernetes client needs it too

    return urllib3.exceptions.HTTPError


def path(*segments: str) -> str:
    """Segments as a path."""
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def encode(data: Any) -> tuple[bytes, dict[str, str]]:
    """What is sent for a value, and the headers that say what it is.

    Bytes and the content of files (a ``Path``) travel as they are, a text as text, everything else as JSON.
    """
    if isinstance(data, os.PathLike):
        return Path(data).read_bytes(), {"Content-Type": "application/octet-stream"}
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), {"Content-Type": "application/octet-stream"}
    if isinstance(data, str):
        return data.encode(), {"Content-Type": "text/plain; charset=utf-8"}
    return json.dumps(data, default=_to_list).encode(), {"Content-Type": "application/json"}


def _to_list(value: Any) -> Any:
    """Arrays and tensors as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"{type(value).__name__} cannot be sent as JSON: send bytes, a text, or lists and dicts of numbers."
    )


def decode(body: bytes) -> Any:
    """The value of an answer: what the JSON in it says, else the text, else the bytes."""
    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def _refusal(answer: Answer) -> DeploymentError:
    body = decode(answer.body)
    if isinstance(body, dict) and "message" in body:
        return DeploymentError(str(body["message"]), hint=str(body.get("hint", "")), status=answer.status)
    return DeploymentError(f"The service answered {answer.status}: {body!r}", status=answer.status)
