"""What child processes print, cut into lines, and the process itself as both ways to start one show it."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

__all__ = ["Child", "Output", "Pipe", "Process"]

_LINE_LIMIT = 16_384  # bytes; a longer line is handed on in pieces, so that output without newlines costs no memory


class Child(Protocol):
    """A process, however it came to be; an ``asyncio.SubprocessTransport`` is one."""

    def get_pid(self) -> int | None: ...

    def get_returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    def send_signal(self, signal: int, /) -> None: ...

    def close(self) -> None: ...


class Process(Protocol):
    """Whom the output tells."""

    def attach(self, child: Child) -> None:
        """The process runs."""

    def line(self, stream: str, text: str) -> None:
        """It printed a line to ``stdout`` or ``stderr``."""

    def stream_ended(self, stream: str) -> None:
        """Nothing more comes of ``stdout`` or ``stderr``."""

    def child_exited(self) -> None:
        """It has ended; its output may still come."""

    def release(self) -> None:
        """It has ended and its output is read: ``close()`` may be called."""


class Output(asyncio.SubprocessProtocol):
    """The child's output, cut into lines."""

    _STREAMS = {1: "stdout", 2: "stderr"}  # noqa: RUF012  (never changed)

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rest = {1: b"", 2: b""}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process.attach(cast("asyncio.SubprocessTransport", transport))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._rest[fd] + data).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            lines.append(rest)
            rest = b""
        self._rest[fd] = rest
        for line in lines:
            self._process.line(self._STREAMS[fd], line.decode("utf-8", "replace").rstrip("\r"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        if self._rest.get(fd):
            self._process.line(self._STREAMS[fd], self._rest.pop(fd).decode("utf-8", "replace"))
        self._process.stream_ended(self._STREAMS[fd])

    def process_exited(self) -> None:
        self._process.child_exited()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._process.release()


class Pipe(asyncio.Protocol):
    """Our end of one stream of a forked process."""

    def __init__(self, output: Output, number: int) -> None:
        self._output = output
        self._number = number

    def data_received(self, data: bytes) -> None:
        self._output.pipe_data_received(self._number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._output.pipe_connection_lost(self._number, exc)
