"""What the SDK sends and reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mariner.errors import DeploymentError
from mariner.sdk.client import KeyFile, decode, encode, path
from mariner.sdk.deployment import check_percentage


class Array:
    def tolist(self) -> list[int]:
        return [1, 2]


@pytest.mark.parametrize(
    ("data", "body", "kind"),
    [
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
        (bytearray(b"ab"), b"ab", "application/octet-stream"),
        (memoryview(b"ab"), b"ab", "application/octet-stream"),
        ("café", "café".encode(), "text/plain; charset=utf-8"),
        ({"a": [1, None]}, b'{"a": [1, null]}', "application/json"),
        ([Array()], b"[[1, 2]]", "application/json"),
        (None, b"null", "application/json"),
    ],
)
def test_values_travel_as_what_they_are(data: Any, body: bytes, kind: str) -> None:
    assert encode(data) == (body, {"Content-Type": kind})


def test_files_travel_as_their_content(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8")
    assert encode(tmp_path / "cat.jpg") == (b"\xff\xd8", {"Content-Type": "application/octet-stream"})


def test_what_cannot_be_sent_says_what_can() -> None:
    with pytest.raises(TypeError, match="object cannot be sent as JSON: send bytes, a text, or lists"):
        encode({"a": object()})


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"7", 7),
        (b"tabby", "tabby"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xd8", b"\xff\xd8"),
        (b"", ""),
    ],
)
def test_answers_are_json_or_text_or_bytes(body: bytes, value: Any) -> None:
    assert decode(body) == value


def test_segments_of_paths_are_encoded() -> None:
    assert path("models", "a b/c", "1.0+x") == "/models/a%20b%2Fc/1.0%2Bx"


def test_keys_are_read_from_the_file_and_again_when_they_are_renewed(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    keys = KeyFile(file, "inference")
    assert keys.headers() == {}
    for key in ("first", "second"):
        (tmp_path / "new").write_text(json.dumps({"inference": {"key": key}, "management": {"key": "other"}}))
        (tmp_path / "new").replace(file)
        assert keys.headers() == {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("percentage", [-1, 101, 0.3, "30", True, None])
def test_what_is_no_percentage_is_refused(percentage: Any) -> None:
    with pytest.raises(DeploymentError, match="Write a whole number from 0 to 100"):
        check_percentage(percentage)


def test_without_the_http_client_deploying_says_what_to_install_and_packaging_works(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["urllib3"] = None
import mariner
from mariner.sdk.client import Client
try:
    Client("http://127.0.0.1:1")
except mariner.sdk.DeploymentError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == (
        "Deploying from Python needs the package urllib3. Install it: pip install 'mariner-serve[sdk]'.\n"
    )
