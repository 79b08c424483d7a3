"""The five log files of TorchServe, in its formats: which line goes where, and what it looks like there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mariner.errors import ConfigurationError
from mariner.logs.console import BLOCK, CONTROL, MODEL_LOG, SOURCE
from mariner.logs.rolling import LineWriter, RollingFile

__all__ = [
    "ACCESS",
    "MODEL",
    "MODEL_METRICS",
    "SERVER",
    "SERVER_METRICS",
    "AccessLog",
    "LogFiles",
    "client_part",
    "request_part",
]

logger = logging.getLogger(__name__)

SERVER: Final = "ts_log.log"
MODEL: Final = "model_log.log"
ACCESS: Final = "access_log.log"
SERVER_METRICS: Final = "ts_metrics.log"
MODEL_METRICS: Final = "model_metrics.log"

_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
_MOST_ENDS = 4096  # of access lines that are kept; a status and some milliseconds each
_KEEP_LINES = CONTROL | {10: "\n"}  # a traceback has several, and so has a block


def _stamp(millisecond: int) -> str:
    """The time as log4j writes it, ``2026-01-31T12:00:00,123``.

    Args:
        millisecond: since the epoch.
    """
    second, rest = divmod(millisecond, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(second))},{rest:03d}"


class AccessLog:
    """One line per answer: ``2026-01-31T12:00:00,123 - /127.0.0.1:53532 "GET /ping HTTP/1.1" 200 0``.

    Args:
        append: takes lines, one or many.
        clock: seconds since the epoch.

    Attributes:
        now: the clock.
        write: notes an answer that has begun, see :func:`_make_write`.
        flush: hands on what was noted; to be called now and then.
    """

    def __init__(self, append: Callable[[bytes], None], clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.write, self.flush = _make_write(append, clock)
        self._told = False

    def tell_rationed(self, per_second: int) -> None:
        """Says, once, that there are not lines for all answers."""
        if not self._told:
            self._told = True
            logger.warning(
                "More than %d answers in a second: %s has a line for that many of each second and for every error. "
                "access_log=all writes all of them.",
                *(per_second, ACCESS),
            )


def _make_write(
    append: Callable[[bytes], None], clock: Callable[[], float]
) -> tuple[Callable[[bytes, bytes, int, float], None], Callable[[], None]]:
    """The function that notes an answer and the one that hands on what was noted.

    Every answer comes by here, so a line is never made: its parts, which were made before, are put on a heap that is
    joined when the millisecond changes. As a closure this takes two thirds of what a method would.
    """
    parts: list[bytes] = []
    add = parts.append
    ends: dict[int, bytes] = {}  # of lines, by status and milliseconds
    millisecond, stamp = -1, b""

    def flush() -> None:
        if parts:
            append(b"".join(parts))
            parts.clear()

    def make_end(key: int) -> bytes:
        if len(ends) >= _MOST_ENDS:
            ends.clear()
        milliseconds, status = divmod(key, 1000)
        end = ends[key] = b"%d %d\n" % (status, max(0, milliseconds))  # the clock may have been set back
        return end

    def write(client: bytes, request: bytes, status: int, since: float) -> None:
        """Notes an answer.

        Args:
            client: see :func:`client_part`.
            request: see :func:`request_part`.
            status: of the answer.
            since: when the request was complete, on ``clock``.
        """
        nonlocal millisecond, stamp
        now = clock()
        if millisecond != (current := int(now * 1000)):
            flush()
            millisecond, stamp = current, _stamp(current).encode()
        key = int((now - since) * 1000) * 1000 + status
        add(stamp)
        add(client)
        add(request)
        add(ends.get(key) or make_end(key))

    return write, flush


def client_part(client: str) -> bytes:
    """What a line of the access log says of a client, ``/<address>:<port>``."""
    return f' - {client} "'.encode()


def request_part(method: str, target: bytes, *, http10: bool = False) -> bytes:
    """What a line of the access log says of a request; the parser has let no control character pass."""
    return b'%b %b HTTP/1.%d" ' % (method.encode(), target, not http10)


class LogFiles:
    """The files, open. What is logged anywhere in this process reaches them until :meth:`close`.

    Args:
        directory: for the log of the server, of its workers, and of who asked for what.
        metrics_directory: for the two files of metrics.
        clock: seconds since the epoch.

    Attributes:
        access: takes what the access log shows.

    Raises:
        ConfigurationError: a directory or file cannot be written.
    """

    def __init__(self, directory: Path, metrics_directory: Path, clock: Callable[[], float] = time.time) -> None:
        paths = [directory / name for name in (SERVER, MODEL, ACCESS)]
        paths += [metrics_directory / name for name in (SERVER_METRICS, MODEL_METRICS)]
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._files = {path.name: RollingFile(path) for path in paths}
        except OSError as error:
            raise ConfigurationError(
                f"Log files cannot be written: {error.filename}: {error.strerror}.",
                hint="LOG_LOCATION and METRICS_LOCATION name their directories.",
            ) from error
        self._clock = clock
        self.access = AccessLog(self._files[ACCESS].append, clock)
        self._handler = _FileHandler(self._files[SERVER].append, self._files[MODEL].append)
        logging.getLogger().addHandler(self._handler)
        self._writer = LineWriter(self._files.values())

    def metric(self, file: str, line: str) -> None:
        """Writes a metric.

        Args:
            file: :data:`SERVER_METRICS` or :data:`MODEL_METRICS`.
            line: the metric in TorchServe's line format.
        """
        text = f"{_stamp(int(self._clock() * 1000))} - {line.translate(CONTROL)}\n"
        self._files[file].append(text.encode("utf-8", "replace"))

    def close(self) -> None:
        """Writes what waits and closes the files."""
        logging.getLogger().removeHandler(self._handler)
        self.access.flush()
        self._writer.close()


class _FileHandler(logging.Handler):
    """``<time> [INFO ] <thread> <logger> - <text>``; a traceback follows on lines of its own."""

    def __init__(self, server: Callable[[bytes], None], model: Callable[[bytes], None]) -> None:
        super().__init__()
        self._server = server
        self._model = model

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._format(record)
        except Exception:  # noqa: BLE001 - what logging does with a record that cannot be written
            self.handleError(record)
            return
        self._server(line)
        if record.name == MODEL_LOG:
            self._model(line)

    @staticmethod
    def _format(record: logging.LogRecord) -> bytes:
        level = _LEVELS.get(record.levelname, record.levelname)
        thread = getattr(record, SOURCE, None) or ("main" if record.threadName == "MainThread" else record.threadName)
        text = record.getMessage().translate(CONTROL)
        line = f"{_stamp(int(record.created * 1000))} [{level:<5}] {thread} {record.name} - {text}\n"
        if block := getattr(record, BLOCK, None):
            line += f"{block.translate(_KEEP_LINES)}\n"
        if record.exc_info:
            line += f"{logging.Formatter().formatException(record.exc_info).translate(_KEEP_LINES)}\n"
        return line.encode("utf-8", "replace")
