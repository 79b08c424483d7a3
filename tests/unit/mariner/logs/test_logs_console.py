from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mariner.config import Config, LogFormat, LogLevel
from mariner.errors import ConfigurationError
from mariner.logs import MODEL_LOG, announce, configure, relay

log = logging.getLogger("mariner.serve")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def console() -> io.StringIO:
    stream = io.StringIO()
    configure(Config(), stream)
    return stream


@pytest.fixture
def events() -> io.StringIO:
    stream = io.StringIO()
    configure(Config(log_format=LogFormat.JSON), stream)
    return stream


def read(events: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in events.getvalue().splitlines()]


def test_a_line_has_time_level_and_place(console: io.StringIO) -> None:
    log.info("Inference API bind to: %s", "http://127.0.0.1:8080")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} INFO    serve - Inference API bind to: http://127\.0\.0\.1:8080\n",
        console.getvalue(),
    )


def test_the_line_scripts_wait_for_stands_alone(console: io.StringIO) -> None:
    announce("Model server started.")
    assert console.getvalue() == "Model server started.\n"


def test_the_line_scripts_wait_for_is_shown_at_any_level() -> None:
    stream = io.StringIO()
    configure(Config(log_level=LogLevel.ERROR), stream)
    log.warning("hidden")
    announce("Model server started.")
    assert stream.getvalue() == "Model server started.\n"


def test_debug_lines_are_hidden_unless_asked_for(console: io.StringIO) -> None:
    log.debug("detail")
    assert console.getvalue() == ""
    configure(Config(log_level=LogLevel.DEBUG), console)
    log.debug("detail")
    assert "DEBUG   serve - detail" in console.getvalue()


def test_a_worker_line_names_worker_and_stream(console: io.StringIO) -> None:
    relay("W-9000-mnist_1.0", "stdout", "Torch worker started.\n")
    relay("W-9000-mnist_1.0", "stderr", "careful")
    lines = [line.partition(" ")[2] for line in console.getvalue().splitlines()]
    assert lines == [
        "INFO    W-9000-mnist_1.0-stdout - Torch worker started.",
        "WARNING W-9000-mnist_1.0-stderr - careful",
    ]


def test_worker_lines_have_a_logger_of_their_own(console: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    relay("W-9000-m_1.0", "stdout", "100% done")
    assert [(record.name, record.message) for record in caplog.records] == [(MODEL_LOG, "100% done")]


def test_one_event_is_one_line(console: io.StringIO) -> None:
    log.info("no model called %s", "a\n2026-01-01T00:00:00,000 INFO    serve - forged\x1b[31m")
    assert console.getvalue().count("\n") == 1
    assert "a\\x0a2026" in console.getvalue()
    assert "\x1b" not in console.getvalue()


def test_a_traceback_follows_its_line(console: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        log.exception("The server has failed.")
    assert "serve - The server has failed.\nTraceback" in console.getvalue()
    assert console.getvalue().endswith("base 10: 'broken'\n")


def test_configuring_again_replaces_the_console(console: io.StringIO) -> None:
    second = io.StringIO()
    configure(Config(), second)
    log.info("once")
    assert console.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_json_lines_carry_what_the_record_carries(events: io.StringIO) -> None:
    log.warning("Model %s is slow.", "m", extra={"event": "slow", "model": "m"})
    (event,) = read(events)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event.pop("time"))
    assert event == {
        "level": "WARNING",
        "logger": "mariner.serve",
        "message": "Model m is slow.",
        "event": "slow",
        "model": "m",
    }


def test_json_lines_keep_worker_and_stream_apart(events: io.StringIO) -> None:
    relay("W-9000-m-x_1.0", "stderr", "careful\r\n")
    (event,) = read(events)
    assert (event["worker"], event["stream"], event["message"]) == ("W-9000-m-x_1.0", "stderr", "careful")


def test_json_lines_are_json_to_the_last(events: io.StringIO) -> None:
    log.info("two\nlines")
    announce("Model server started.")
    assert [event["message"] for event in read(events)] == ["two\nlines", "Model server started."]


def test_json_lines_hold_tracebacks(events: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        log.exception("failed")
    assert read(events)[0]["exception"].endswith("base 10: 'broken'")


def test_a_reader_that_goes_away_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        configure(Config(), stream)
        log.info("first")
        log.info("second")
    assert capfd.readouterr() == ("", "")


def test_what_the_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    configure(Config(), io.TextIOWrapper(raw, encoding="ascii"))
    relay("W-9000-m_1.0", "stdout", "é \udcff")
    assert rb"\xe9 \udcff" in raw.getvalue()


def test_a_logger_may_have_a_level_of_its_own_until_the_next_configuration() -> None:
    pool, queue = logging.getLogger("mariner.pool"), logging.getLogger("mariner.batching")
    configure(Config(log_levels=("mariner.pool=debug", "MODEL_LOG = Error")), io.StringIO())
    assert (pool.isEnabledFor(logging.DEBUG), queue.isEnabledFor(logging.DEBUG)) == (True, False)
    assert not logging.getLogger(MODEL_LOG).isEnabledFor(logging.WARNING)
    configure(Config(), io.StringIO())
    assert not pool.isEnabledFor(logging.DEBUG)
    assert logging.getLogger(MODEL_LOG).isEnabledFor(logging.INFO)


@pytest.mark.parametrize("text", ["mariner.pool", "=debug", "mariner.pool=loud"])
def test_a_level_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"log_levels={text}: expected <logger>=<level>")):
        configure(Config(log_levels=(text,)), io.StringIO())


def test_an_event_is_one_line_whatever_is_in_it(events: io.StringIO) -> None:
    try:
        int("two\nlines \x1b[31m")
    except ValueError:
        log.exception("It failed: %s", "a\r\nb")
    (line,) = events.getvalue().splitlines()
    event = json.loads(line)
    assert event["message"] == "It failed: a\r\nb"
    assert event["exception"].startswith("Traceback (most recent call last):\n")
    assert set(event) == {"time", "level", "logger", "message", "exception"}
