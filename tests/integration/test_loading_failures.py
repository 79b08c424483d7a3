"""Archives that do not arrive, do not fit, or whose server is killed meanwhile: nothing half-made stays.

A full disk is a limit on the size of files: every write beyond it fails, as on a disk without room, without root.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_serving import Answer, Client, names_in, put_model

import mariner
from mariner.archive.download import DownloadLimits, fetch
from mariner.auth import Listener
from mariner.config import Origin, Source
from mariner.serve import Server, _tell_when_ready
from mariner.testing import running_server
from remote import Remote

pytestmark = pytest.mark.slow

SECONDS = 30.0  # until a process counts as stuck
MiB = 1 << 20
HANDLER = "def handle(data, context):\n    return data and ['served' for _ in data]\n"


def archive_bytes(name: str, *, size: int = 0, kind: str = "mar", requirements: str = "") -> bytes:
    """A packed model with that many bytes of weights."""
    model = {"modelName": name, "handler": "h.py"} | ({"requirementsFile": "r.txt"} if requirements else {})
    files = {
        "h.py": HANDLER.encode(),
        "r.txt": requirements.encode(),
        "MAR-INF/MANIFEST.json": json.dumps({"model": model}).encode(),
        "weights.bin": b"\0" * size,
    }
    buffer = io.BytesIO()
    if kind == "mar":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
            for path, content in files.items():
                entry = tarfile.TarInfo(f"{name}/{path}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def answer_with(content: bytes, *, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content) if length is None else length}\r\n\r\n"
    return head.encode() + content


LOOPBACK_ALLOWED: dict[str, Any] = {
    "allowed_urls": (re.compile(r"http://127\.0\.0\.1:.*"),),
    "origins": {"allowed_urls": Origin(Source.FILE, "config.properties")},
}


@pytest.fixture
def remote() -> Iterator[Callable[..., Remote]]:
    remotes: list[Remote] = []

    def start(*script: bytes) -> Remote:
        remotes.append(Remote(*script))
        return remotes[-1]

    yield start
    for one in remotes:
        one.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "store"
    place.mkdir()
    put_model(place, "echo", "echo")
    return place


@pytest.fixture
async def server(store: Path, tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(
        model_store=store, load_models=("echo",), temp_dir=tmp_path, install_py_dep_per_model=True, **LOOPBACK_ALLOWED
    ) as server:
        await server.models.wait_until_ready()
        yield server


@pytest.fixture
async def register(server: Server) -> AsyncIterator[Callable[..., Any]]:
    client = await Client.connect(server, Listener.MANAGEMENT)

    async def ask(url: str, **parameters: str) -> Answer:
        query = "".join(f"&{key}={value}" for key, value in parameters.items())
        return await client.ask("POST", f"/models?url={url}&initial_workers=1{query}")

    yield ask
    await client.close()


async def assert_alive(server: Server) -> None:
    client = await Client.connect(server)
    assert (await client.ask("POST", "/predictions/echo", b"hello", Content_Type="text/plain")).body == b"hello"
    await client.close()


def left(server: Server, store: Path) -> tuple[list[str], int]:
    """What is in the store, and how many unpacked models there are; that of ``echo`` is one."""
    return names_in(store), len(names_in(server.temp_dir.path / "models"))


@contextmanager
def full_disk(free: int = MiB) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "kind"), [("big.mar", "mar"), ("big.tar.gz", "tgz")])
async def test_an_archive_that_does_not_fit_leaves_nothing_and_the_server_lives(
    server: Server, store: Path, register: Callable[..., Any], file: str, kind: str
) -> None:
    (store / file).write_bytes(archive_bytes("big", size=2 * MiB, kind=kind))
    with full_disk():
        answer = await register(file)
    assert (answer.status, answer.json["message"]) == (500, f"Failed to save model: {file}")
    assert answer.json["hint"].endswith("Make room in the model store and in the temporary directory of the server.")
    assert left(server, store) == (["echo", file] if file > "echo" else [file, "echo"], 1)
    await assert_alive(server)
    assert (await register(file)).status == 200


async def test_a_download_that_does_not_fit_leaves_nothing_and_the_server_lives(
    server: Server, store: Path, remote: Callable[..., Remote], register: Callable[..., Any]
) -> None:
    content = archive_bytes("big")
    large = answer_with(os.urandom(2 * MiB))
    source = remote(large, answer_with(content))
    with full_disk():
        answer = await register(source.url("/big.mar"))
    assert (answer.status, answer.json["message"]) == (500, f"Failed to save model: {source.url('/big.mar')}")
    assert "Make room" in answer.json["hint"]
    assert left(server, store) == (["echo"], 1)
    await assert_alive(server)
    assert (await register(source.url("/big.mar"))).status == 200


async def test_packages_that_do_not_fit_leave_nothing_and_the_server_lives(
    server: Server, store: Path, tmp_path: Path, register: Callable[..., Any]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "tincture-1.0.dist-info"
    with zipfile.ZipFile(wheels / "tincture-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("tincture/data.bin", b"\0" * (2 * MiB))
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tincture\nVersion: 1.0\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    requirements = f"--no-index\n--find-links {wheels}\ntincture\n"
    (store / "needy.mar").write_bytes(archive_bytes("needy", requirements=requirements))
    with full_disk():
        answer = await register("needy.mar")
    assert answer.status == 400
    assert answer.json["message"] == "Custom pip package installation failed for model needy"
    assert "File too large" in answer.json["hint"]
    assert left(server, store) == (["echo", "needy.mar"], 1)
    assert [path for path in (tmp_path / "cache/mariner/packages").iterdir() if path.suffix != ".lock"] == []
    await assert_alive(server)
    assert (await register("needy.mar")).status == 200


# -- downloads that end early ----------------------------------------------------------------------------------------

GOOD = archive_bytes("m")


@pytest.mark.parametrize(
    ("script", "hint"),
    [
        (answer_with(GOOD[:100], length=len(GOOD)), f"ended after 100 of {len(GOOD)} bytes"),
        (answer_with(GOOD[:100], length=len(GOOD)) + b"...", "broke after 100 bytes"),  # silence
        (answer_with(GOOD, length=len(GOOD) - 1), "is damaged|neither a zip"),
        (answer_with(GOOD, length=len(GOOD) + 1), f"ended after {len(GOOD)} of {len(GOOD) + 1} bytes"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/m.mar\r\nContent-Length: 0\r\n\r\n",
            "which no pattern",
        ),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "answered 500 Oops"),
    ],
)
async def test_a_download_that_goes_wrong_leaves_nothing_and_may_be_repeated(
    server: Server,
    store: Path,
    remote: Callable[..., Remote],
    register: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    script: bytes,
    hint: str,
) -> None:
    monkeypatch.setattr("mariner.loading.fetch", partial(fetch, limits=DownloadLimits(silence=0.3)))
    source = remote(script, answer_with(GOOD))
    answer = await register(source.url())
    assert answer.status == 400
    assert re.search(hint, answer.json["message"] + answer.json.get("hint", "")), answer.json
    assert left(server, store) == (["echo"], 1)
    await assert_alive(server)
    assert (await register(source.url())).status == 200
    assert names_in(store) == ["echo", "m.mar"]


async def test_an_archive_with_another_checksum_is_not_kept(
    server: Server, store: Path, remote: Callable[..., Remote], register: Callable[..., Any]
) -> None:
    source = remote(answer_with(GOOD), answer_with(GOOD))
    answer = await register(source.url(), sha256="0" * 64)
    assert answer.status == 400
    assert f"its sha256 is {hashlib.sha256(GOOD).hexdigest()}" in answer.json["message"]
    assert left(server, store) == (["echo"], 1)
    assert (await register(source.url(), sha256=hashlib.sha256(GOOD).hexdigest())).status == 200


# -- a server that is killed -----------------------------------------------------------------------------------------

DYING = """
import asyncio, os, re, sys
from pathlib import Path
from mariner import loading
from mariner.config import Origin, Source
from mariner.testing import running_server

class Watched:
    def __init__(self, file):
        self.file = file
    def writelines(self, chunks):
        for chunk in chunks:
            self.file.write(chunk)
            self.file.flush()
            print("some of it is on disk", flush=True)

fetch = loading.fetch
loading.fetch = lambda url, file, **options: fetch(url, Watched(file), **options)

async def main():
    place, url = Path(sys.argv[1]), sys.argv[2]
    async with running_server(
        model_store=place / "store",
        load_models=("echo",),
        temp_dir=place,
        allowed_urls=(re.compile("http://127.0.0.1:.*"),),
        origins={"allowed_urls": Origin(Source.FILE, "config.properties")},
    ) as server:
        await server.models.register(url)

asyncio.run(main())
"""


def killed_in_the_middle(place: Path, url: str) -> None:
    """Starts a server in ``place`` and kills it when some of a download is on disk."""
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, str(place), url],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(mariner.__file__).parents[1])},
    )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], SECONDS)[0], "nothing was fetched"
        assert process.stdout.readline() == b"some of it is on disk\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def temporary_directories(place: Path) -> list[Path]:
    return list(place.glob("mariner-*"))


async def test_a_start_removes_what_a_killed_server_left_and_fetches_again(
    store: Path, tmp_path: Path, remote: Callable[..., Remote]
) -> None:
    source = remote(answer_with(GOOD[:100], length=len(GOOD)) + b"...", answer_with(GOOD))
    killed_in_the_middle(tmp_path, source.url())
    assert [name for name in names_in(store) if name.endswith(".download")]
    (dead,) = temporary_directories(tmp_path)
    assert len(names_in(dead / "models")) == 1

    initial = (source.url(),)
    async with running_server(model_store=store, temp_dir=tmp_path, load_models=initial, **LOOPBACK_ALLOWED) as server:
        assert names_in(store) == ["echo", "m.mar"]
        assert dead not in temporary_directories(tmp_path)
        await server.models.wait_until_ready()
        assert [name for name, _ in server.models.list_models()] == ["m"]
    assert temporary_directories(tmp_path) == []


# -- what the console tells ------------------------------------------------------------------------------------------


async def test_the_console_counts_the_models_that_are_ready(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "m.mar").write_bytes(GOOD)
    (store / "junk.mar").write_bytes(b"no archive")
    put_model(store, "lost", "import nowhere_at_all\n")
    with caplog.at_level("INFO", "mariner.serve"):
        async with running_server(model_store=store, temp_dir=tmp_path, load_models=("all",)) as server:
            told: list[str] = []
            await _tell_when_ready(server.models, lambda: told.append("ready"))
    lines = [record.getMessage() for record in caplog.records if record.name == "mariner.serve"]
    counted = [line for line in lines if " is ready: " in line]
    assert sorted(line.partition(" is ready")[0] for line in counted) == [
        "Model echo version 1.0",
        "Model m version 1.0",
    ]
    assert [line.rpartition(": ")[2] for line in counted] == ["1 of 4.", "2 of 4."]
    assert any(line.startswith("Model lost version 1.0 is not ready") for line in lines)
    assert "2 of 4 models are ready; the lines above say why others are not." in lines
    assert told == ["ready"]
