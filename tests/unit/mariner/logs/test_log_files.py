from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mariner.errors import ConfigurationError
from mariner.logs import AccessLog, LogFiles, client_part, relay, request_part
from mariner.logs.files import MODEL_METRICS, SERVER_METRICS

log = logging.getLogger("mariner.serve")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}"


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(before)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    files = LogFiles(tmp_path / "logs", tmp_path / "metrics")
    yield files
    files.close()


def read(files: LogFiles, path: Path) -> list[str]:
    for file in files._files.values():
        file.flush()
    return path.read_text().splitlines()


def test_the_five_files_exist_from_the_start(files: LogFiles, tmp_path: Path) -> None:
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "access_log.log",
        "model_log.log",
        "ts_log.log",
    ]
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == ["model_metrics.log", "ts_metrics.log"]


def test_a_line_of_the_server_is_written_as_log4j_did(files: LogFiles, tmp_path: Path) -> None:
    log.info("Inference API bind to: %s", "http://127.0.0.1:8080")
    log.warning("careful")
    first, second = read(files, tmp_path / "logs/ts_log.log")
    assert re.fullmatch(TIME + r" \[INFO \] main mariner.serve - Inference API bind to: http://127.0.0.1:8080", first)
    assert re.fullmatch(TIME + r" \[WARN \] main mariner.serve - careful", second)


def test_what_a_worker_prints_is_in_the_model_log_and_in_the_servers(files: LogFiles, tmp_path: Path) -> None:
    relay("W-9000-m_1.0", "stdout", "loaded")
    relay("W-9000-m_1.0", "stderr", "Traceback (most recent call last):")
    log.info("not a worker's")
    for name in ("model_log.log", "ts_log.log"):
        lines = [line[24:] for line in read(files, tmp_path / "logs" / name)]
        assert lines[:2] == [
            "[INFO ] W-9000-m_1.0-stdout MODEL_LOG - loaded",
            "[WARN ] W-9000-m_1.0-stderr MODEL_LOG - Traceback (most recent call last):",
        ]
        assert len(lines) == (2 if name == "model_log.log" else 3)


def test_a_traceback_follows_its_line(files: LogFiles, tmp_path: Path) -> None:
    try:
        int("no\nsuch thing")
    except ValueError:
        log.exception("Failed")
    lines = read(files, tmp_path / "logs/ts_log.log")
    assert lines[0].endswith("[ERROR] main mariner.serve - Failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: invalid literal for int() with base 10: 'no\nsuch thing'"


def test_nothing_a_client_sends_makes_a_second_line(files: LogFiles, tmp_path: Path) -> None:
    log.warning("Model %s", "m\n2026-01-01T00:00:00,000 [INFO ] forged")
    (line,) = read(files, tmp_path / "logs/ts_log.log")
    assert "m\\x0a2026" in line


def test_metrics_have_files_of_their_own(files: LogFiles, tmp_path: Path) -> None:
    files.metric(SERVER_METRICS, "MemoryUsed.Megabytes:1.0|#Level:Host|#hostname:h,timestamp:1")
    files.metric(MODEL_METRICS, "HandlerTime.ms:1.5|#ModelName:m,Level:Model|#hostname:h,requestID:r,timestamp:1")
    (server,) = read(files, tmp_path / "metrics/ts_metrics.log")
    (model,) = read(files, tmp_path / "metrics/model_metrics.log")
    assert re.fullmatch(TIME + r" - MemoryUsed\.Megabytes:1\.0\|#Level:Host\|#hostname:h,timestamp:1", server)
    assert model.endswith(" - HandlerTime.ms:1.5|#ModelName:m,Level:Model|#hostname:h,requestID:r,timestamp:1")


def test_an_access_line_says_who_asked_what_and_how_it_ended() -> None:
    lines: list[bytes] = []
    access = AccessLog(lines.append, clock=lambda: 1_800_000_000.5)
    client = client_part("/127.0.0.1:53532")
    access.write(client, request_part("GET", b"/ping?x=1"), 200, 1_800_000_000.4871)
    access.write(client, request_part("PUT", b"/", http10=True), 599, 1_800_000_003.0)
    access.flush()
    first, second = b"".join(lines).splitlines(keepends=True)
    assert re.fullmatch(TIME.encode() + rb' - /127\.0\.0\.1:53532 "GET /ping\?x=1 HTTP/1\.1" 200 12\n', first)
    assert b",500 - " in first
    assert second.endswith(b'"PUT / HTTP/1.0" 599 0\n')  # the clock was set back


def test_access_lines_carry_the_time_of_each() -> None:
    chunks: list[bytes] = []
    moments = iter([100.0, 100.001, 100.0015, 101.25])
    access = AccessLog(chunks.append, clock=lambda: next(moments))
    for _ in range(4):
        access.write(client_part("/127.0.0.1:1"), request_part("GET", b"/"), 405, 100.0)
    access.flush()
    lines = b"".join(chunks).splitlines()
    assert [line.partition(b" ")[0].rpartition(b",")[2] for line in lines] == [b"000", b"001", b"001", b"250"]
    assert [line.partition(b",")[0][-2:] for line in lines] == [b"40", b"40", b"40", b"41"]
    assert [line.split()[-1] for line in lines] == [b"0", b"1", b"1", b"1250"]


def test_access_lines_of_many_lengths_are_right() -> None:
    chunks: list[bytes] = []
    access = AccessLog(chunks.append, clock=lambda: 100.0)
    for milliseconds in range(10_000):
        access.write(client_part("c"), request_part("GET", b"/"), 200, 100.0 - (milliseconds + 0.5) / 1000)
    access.flush()
    assert [int(line.split()[-1]) for line in b"".join(chunks).splitlines()] == list(range(10_000))


def test_that_lines_are_rationed_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    access = AccessLog([].append)
    access.tell_rationed(10)
    access.tell_rationed(10)
    (said,) = caplog.messages
    assert said.startswith("More than 10 answers in a second: access_log.log has a line for that many of each second")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ConfigurationError, match="logs") as caught:
        LogFiles(tmp_path / "logs", tmp_path)
    assert "LOG_LOCATION" in caught.value.hint


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, tmp_path)
    log.info("before")
    files.close()
    log.info("after")
    assert [line[-6:] for line in (tmp_path / "ts_log.log").read_text().splitlines()] == ["before"]
