from __future__ import annotations

import queue
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ts import launcher
from ts.torch_handler.unit_tests.test_utils.model_dir import copy_files, download_model

COMMAND = """#!/bin/sh
echo "$@" >> "{log}"
[ "$1" = --stop ] && exit 0
echo first; echo 'Model server started.'; echo "$@"; echo last
"""
FAILING = """#!/bin/sh
[ "$1" = --stop ] && exit 0
echo no such directory >&2; exit 1
"""


@pytest.fixture
def put_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a command torchserve in the place of the real one."""

    def put(script: str) -> Path:
        command = tmp_path / "torchserve"
        command.write_text(script.format(log=tmp_path / "calls") if "{log}" in script else script)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
        return tmp_path / "calls"

    return put


class Management(BaseHTTPRequestHandler):
    """Notes what it was asked, and refuses models called "bad"."""

    asked: list[str]

    def do_POST(self) -> None:
        type(self).asked.append(self.path)
        bad = "bad" in self.path
        self.send_response(409 if bad else 200)
        self.end_headers()
        self.wfile.write(b'{"status": "taken"}' if bad else b'{"status": "done"}')

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"weights")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def management() -> Iterator[str]:
    Management.asked = []
    with HTTPServer(("127.0.0.1", 0), Management) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_is_started_in_place_of_another_one(put_command: Any) -> None:
    calls = put_command(COMMAND)
    lines = launcher.start("store", "config.properties", True, "plugins", True, "all")
    assert [lines.get(timeout=10) for _ in range(3)][1:] == ["last\n", None]
    stop, start = calls.read_text().splitlines()
    assert stop == "--stop --foreground"
    assert start.split() == [
        *("--start", "--model-store", "store", "--plugins-path", "plugins", "--ts-config", "config.properties"),
        *("--models", "all", "--no-config-snapshots", "--disable-token-auth", "--enable-model-api"),
    ]


def test_what_the_server_writes_is_echoed(put_command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put_command(COMMAND)
    lines = launcher.start(models=["a.mar", "b.mar"], enable_model_api=False)
    while lines.get(timeout=10) is not None:
        pass
    assert capsys.readouterr().out == "first\nModel server started.\n--start --models a.mar b.mar\nlast\n"


@pytest.mark.slow
def test_a_real_server_is_started_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the pid file lies
    free = "".join(f"{kind}_address=http://127.0.0.1:0\n" for kind in ("inference", "management", "metrics"))
    (tmp_path / "config.properties").write_text(f"{free}disable_system_metrics=true\n")
    lines = launcher.start(tmp_path, tmp_path / "config.properties", no_config_snapshots=True)
    launcher.stop()
    while lines.get(timeout=30) is not None:
        pass


def test_a_server_that_does_not_start_says_why(put_command: Any) -> None:
    put_command(FAILING)
    with pytest.raises(RuntimeError, match=r"did not start \(exit code 1\):\nno such directory"):
        launcher.start("store")


def test_a_server_is_stopped_without_waiting(put_command: Any) -> None:
    calls = put_command(COMMAND)
    launcher.stop(wait=False)
    assert calls.read_text() == "--stop\n"


def test_a_missing_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="The command torchserve"):
        launcher.stop()


def test_a_script_that_does_not_read_loses_the_oldest_lines() -> None:
    lines: Any = queue.Queue(2)
    for line in ("1", "2", "3", None):
        launcher._keep(lines, line)
    assert [lines.get(), lines.get()] == ["3", None]


def test_a_model_is_registered_with_one_worker(management: str) -> None:
    assert launcher.register_model("tiny", "a/b.mar", management=management) == {"status": "done"}
    assert Management.asked == ["/models?model_name=tiny&url=a%2Fb.mar&initial_workers=1&synchronous=true"]


def test_a_refused_model_is_an_error_with_the_reason(management: str) -> None:
    with pytest.raises(RuntimeError, match=r"status 409\): .*taken"):
        launcher.register_model_with_params({"url": "bad.mar"}, management=management)


def test_files_of_a_model_are_copied(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "a").write_text("a")
    copy_files(tmp_path, tmp_path / "to", ["a"])
    assert (tmp_path / "to" / "a").read_text() == "a"


def test_a_model_is_downloaded_once(tmp_path: Path, management: str) -> None:
    (tmp_path / "old.pt").write_text("mine")
    download_model(f"{management}/models/new.pt", tmp_path)
    download_model(f"{management}/models/old.pt", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new.pt": "weights", "old.pt": "mine"}


@pytest.mark.parametrize("url", ["file:///etc/hosts", "https://example.org/"])
def test_what_is_no_address_of_a_file_is_not_downloaded(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="is no address of a file"):
        download_model(url, tmp_path)
