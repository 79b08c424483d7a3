from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mariner.errors import ConfigurationError
from mariner.logs import AccessLog, LogFiles, relay
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
        raise ValueError("no\nsuch thing")  # noqa: TRY301 - what is logged needs a traceback
    except ValueError:
        log.exception("Failed")
    lines = read(files, tmp_path / "logs/ts_log.log")
    assert lines[0].endswith("[ERROR] main mariner.serve - Failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2:] == ["ValueError: no", "such thing"]


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
    access(b"/127.0.0.1:53532", b"GET /ping HTTP/1.1", 200, 0.0129)
    (line,) = lines
    assert re.fullmatch(TIME.encode() + rb' - /127\.0\.0\.1:53532 "GET /ping HTTP/1\.1" 200 12\n', line)
    assert b",500 - " in line


def test_access_lines_carry_the_time_of_each() -> None:
    lines: list[bytes] = []
    moments = iter([100.0, 100.001, 100.0015, 101.25])
    access = AccessLog(lines.append, clock=lambda: next(moments))
    for _ in range(4):
        access(b"/127.0.0.1:1", b"GET / HTTP/1.1", 405, 0)
    assert [line.partition(b" ")[0].rpartition(b",")[2] for line in lines] == [b"000", b"001", b"001", b"250"]
    assert [line.partition(b",")[0][-2:] for line in lines] == [b"40", b"40", b"40", b"41"]


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
