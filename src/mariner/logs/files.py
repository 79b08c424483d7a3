"""The five log files of TorchServe, in its formats: which line goes where, and what it looks like there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mariner.errors import ConfigurationError
from mariner.logs.console import CONTROL, MODEL_LOG, SOURCE
from mariner.logs.rolling import LineWriter, RollingFile

__all__ = ["ACCESS", "MODEL", "MODEL_METRICS", "SERVER", "SERVER_METRICS", "AccessLog", "LogFiles"]

SERVER: Final = "ts_log.log"
MODEL: Final = "model_log.log"
ACCESS: Final = "access_log.log"
SERVER_METRICS: Final = "ts_metrics.log"
MODEL_METRICS: Final = "model_metrics.log"

_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
_KEEP_LINES = CONTROL | {10: "\n"}  # a traceback has several


class _Stamp:
    """The time as log4j writes it, ``2026-01-31T12:00:00,123``, made at most once per millisecond."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = self._millisecond = -1
        self._date = ""
        self._text = b""

    def __call__(self) -> bytes:
        now = int(self._clock() * 1000)
        if now != self._millisecond:
            self._millisecond = now
            second, rest = divmod(now, 1000)
            if second != self._second:
                self._second = second
                self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))
            self._text = b"%b,%03d" % (self._date.encode(), rest)
        return self._text


class AccessLog:
    """One line per answer: ``2026-01-31T12:00:00,123 - /127.0.0.1:53532 "GET /ping HTTP/1.1" 200 0``.

    Args:
        append: takes the lines.
        clock: seconds since the epoch.
    """

    def __init__(self, append: Callable[[bytes], None], clock: Callable[[], float] = time.time) -> None:
        self._append = append
        self._stamp = _Stamp(clock)

    def __call__(self, client: bytes, request: bytes, status: int, seconds: float) -> None:
        """An answer has begun.

        Args:
            client: ``/<address>:<port>``.
            request: method, target and protocol, as sent: the parser lets no control character pass.
            status: of the answer.
            seconds: since the request was complete.
        """
        self._append(b'%b - %b "%b" %d %d\n' % (self._stamp(), client, request, status, seconds * 1000))


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
        self._stamp = _Stamp(clock)
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
        self._files[file].append(b"%b - %b\n" % (self._stamp(), line.translate(CONTROL).encode("utf-8", "replace")))

    def close(self) -> None:
        """Writes what waits and closes the files."""
        logging.getLogger().removeHandler(self._handler)
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
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        level = _LEVELS.get(record.levelname, record.levelname)
        thread = getattr(record, SOURCE, None) or ("main" if record.threadName == "MainThread" else record.threadName)
        text = record.getMessage().translate(CONTROL)
        line = f"{moment},{int(record.msecs):03d} [{level:<5}] {thread} {record.name} - {text}\n"
        if record.exc_info:
            line += f"{logging.Formatter().formatException(record.exc_info).translate(_KEEP_LINES)}\n"
        return line.encode("utf-8", "replace")
