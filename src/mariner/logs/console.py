"""Lines on the console, of the server and of its workers."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from mariner.config import Config, LogFormat, LogLevel
from mariner.errors import ConfigurationError

__all__ = ["BLOCK", "CONTROL", "MODEL_LOG", "SOURCE", "STARTED", "announce", "configure", "relay"]

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler

MODEL_LOG: Final = "MODEL_LOG"
STARTED: Final = "Model server started."
"""The line scripts wait for; on a console it stands alone, without time and level."""

SOURCE, _BARE = "source", "bare"  # attributes of our records: who wrote a worker's line; "as it is, please"
BLOCK: Final = "block"  # another: indented lines that follow, as those of a traceback do
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", SOURCE, _BARE, BLOCK}
# One event is one line, and no client can write a second one or speak to the terminal.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) != "\t"}


def configure(config: Config, stream: TextIO | None = None) -> None:
    """Sends every line to ``stream``, else stdout, in the configured format; replaces what an earlier call set up.

    Raises:
        ConfigurationError: a level of a single logger is none.
    """
    levels = dict(map(_read_level, config.log_levels))
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _ConsoleHandler):
            for name in handler.levels:
                logging.getLogger(name).setLevel(logging.NOTSET)
            root.removeHandler(handler)
            handler.close()
    stream = stream or sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a worker may print what the terminal's encoding lacks
    console = _ConsoleHandler(stream)
    console.setFormatter(_JsonFormatter() if config.log_format is LogFormat.JSON else _ConsoleFormatter())
    root.addHandler(console)
    root.setLevel(config.log_level.value.upper())
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    console.levels = tuple(levels)


def _read_level(text: str) -> tuple[str, str]:
    """Name of a logger and its level, from ``mariner.worker=debug``."""
    name, _, level = (part.strip() for part in text.partition("="))
    if not name or level.lower() not in {known.value for known in LogLevel}:
        raise ConfigurationError(
            f"Invalid configuration: log_levels={text}: expected <logger>=<level>.",
            hint=f"Levels are {', '.join(known.value for known in LogLevel)}; a logger is mariner.worker, say.",
        )
    return name, level.upper()


def relay(worker_name: str, stream_name: str, line: str) -> None:
    """Writes a line that a worker printed.

    Args:
        worker_name: ``W-<id>-<model>_<version>``.
        stream_name: ``stdout`` or ``stderr``.
        line: what it printed, with or without the line end.
    """
    level = logging.WARNING if stream_name == "stderr" else logging.INFO
    logging.getLogger(MODEL_LOG).log(level, "%s", line.rstrip("\r\n"), extra={SOURCE: f"{worker_name}-{stream_name}"})


def announce(line: str) -> None:
    """Writes a line that scripts wait for: whatever the log level, and on a console without anything around it."""
    logger = logging.getLogger("mariner")
    logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, line, (), None, extra={_BARE: True}))


class _ConsoleHandler(_Handler):
    """Survives a reader or terminal that goes away: the server must not fail because nobody reads its log."""

    levels: tuple[str, ...] = ()  # loggers that got a level of their own with it

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name logging gives it
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) and error.errno in {errno.EPIPE, errno.EIO}):
            super().handleError(record)
            return
        # What is left in the stream's buffer would fail again at exit, and change the exit status.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)


class _ConsoleFormatter(logging.Formatter):
    """``2026-01-31T12:00:00,123 INFO  serve - text``; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage().translate(CONTROL)
        if getattr(record, _BARE, False):
            return text
        source = getattr(record, SOURCE, None) or record.name.removeprefix("mariner.")
        time = datetime.fromtimestamp(record.created, tz=UTC).astimezone()
        line = f"{time:%Y-%m-%dT%H:%M:%S},{int(record.msecs):03d} {record.levelname:<7} {source} - {text}"
        if block := getattr(record, BLOCK, None):
            line += f"\n{block.translate(CONTROL | {10: chr(10)})}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info).translate(CONTROL | {10: chr(10)})}"
        return line


class _JsonFormatter(logging.Formatter):
    """One object per line: time in UTC, level, logger, message, and whatever the record carries besides."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if source := getattr(record, SOURCE, None):
            event["worker"], _, event["stream"] = source.rpartition("-")
        event |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)
