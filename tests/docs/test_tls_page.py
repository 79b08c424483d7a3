"""The page about HTTPS, as written, on other ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/how-to/tls.md").read_text(), flags=re.DOTALL)


def block(kind: str, text: str) -> str:
    """The first block of a kind that holds a text."""
    return next(body for language, body in BLOCKS if language == kind and text in body)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def shell(command: str, cwd: Path) -> str:
    done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_about_https_does_what_it_says(tmp_path: Path) -> None:
    port = free_port()
    shell(block("bash", "openssl req"), tmp_path)
    settings = block("properties", "certificate_file").replace("8443", str(port)).replace("8081", "0")
    (tmp_path / "config.properties").write_text(settings + "metrics_address=http://127.0.0.1:0\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "mariner", "serve"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any(f"Inference API bind to: https://127.0.0.1:{port}" in line for line in server.stdout)
            (curl,) = re.findall(r"^curl .*https.*$", block("bash", "torchserve --start"), flags=re.MULTILINE)
            assert shell(f"{curl.replace('8443', str(port))} -s", tmp_path) == block("json", "Healthy")
            offers = block("bash", "s_client").replace("8443", str(port))
            assert shell(offers, tmp_path) == block("text", "ALPN")
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
