"""Requirements files of archives, through a real server, a real pip and real workers; without the network."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import pytest

from mariner.errors import InvalidArchive, WorkerStartFailed
from mariner.jobs import Part, Request
from mariner.serve import Server
from mariner.testing import running_server

pytestmark = pytest.mark.slow

HANDLER = """
import sys
import tincture

def handle(data, context):
    return data and [f"{tincture.VERSION} {sys.prefix}" for _ in data]
"""


def wheel(folder: Path, version: str) -> None:
    info = f"tincture-{version}.dist-info"
    files = {
        "tincture/__init__.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tincture\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"tincture-{version}-py3-none-any.whl", "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)


def put_model(store: Path, name: str, requirements: str, config: str = "", *, packed: bool = True) -> None:
    model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py", "requirementsFile": "requirements.txt"}
    files = {
        "handler.py": HANDLER,
        "requirements.txt": requirements,
        "config.yaml": f"minWorkers: 1\nmaxWorkers: 1\n{config}",
        "MAR-INF/MANIFEST.json": json.dumps({"runtime": "python3", "model": {**model, "configFile": "config.yaml"}}),
    }
    if packed:
        with zipfile.ZipFile(store / f"{name}.mar", "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
        return
    for file, content in files.items():
        path = store / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for version in ("1.0", "2.0"):
        wheel(tmp_path / "wheels", version)
    place = tmp_path / "store"
    place.mkdir()
    return place


def wanted(tmp_path: Path, line: str) -> str:
    return f"--no-index\n--find-links {tmp_path / 'wheels'}\n{line}\n"


async def answer(server: Server, model: str) -> str:
    reply = await server.models.predict(model, None, Request("r", b"", [Part("body", "text/plain", b"x")]))
    return bytes(reply.body).decode()


def cached(tmp_path: Path) -> int:
    return sum(path.is_dir() for path in (tmp_path / "cache" / "mariner" / "packages").iterdir())


async def test_two_models_have_different_versions_of_one_package_at_once(store: Path, tmp_path: Path) -> None:
    put_model(store, "old", wanted(tmp_path, "tincture==1.0"))
    put_model(store, "new", wanted(tmp_path, "tincture>=2"), packed=False)
    async with running_server(model_store=store, temp_dir=tmp_path, install_py_dep_per_model=True) as server:
        await asyncio.gather(server.models.register("old.mar"), server.models.register("new"))
        answers = [(await answer(server, name)).split()[0] for name in ("old", "new")]
    assert answers == ["1.0", "2.0"]
    assert not list((store / "new").glob("tincture*"))  # the user's own directory is left as it was


async def test_packages_stay_in_the_cache_while_a_model_uses_them(store: Path, tmp_path: Path) -> None:
    for name in ("1.0", "2.0"):
        put_model(store, f"m{name[0]}", wanted(tmp_path, f"tincture=={name}"))
    settings = {"install_py_dep_per_model": True, "package_cache_size": 0}
    async with running_server(model_store=store, temp_dir=tmp_path, **settings) as server:
        await server.models.register("m1.mar")
        await server.models.register("m2.mar")
        assert cached(tmp_path) == 2
        await server.models.unregister("m1")
        await server.models.register("m1.mar")
        await server.models.unregister("m2")
        await server.models.unregister("m1")
        await server.models.register("m2.mar")
        assert cached(tmp_path) == 1
        assert (await answer(server, "m2")).split()[0] == "2.0"


async def test_models_with_virtual_environments_run_in_their_own(store: Path, tmp_path: Path) -> None:
    put_model(store, "own", wanted(tmp_path, "tincture==1.0"), "useVenv: true\n")
    put_model(store, "other", wanted(tmp_path, "tincture==2.0"), "useVenv: true\n")
    async with running_server(model_store=store, temp_dir=tmp_path, install_py_dep_per_model=True) as server:
        for name, version in (("own", "1.0"), ("other", "2.0")):
            await server.models.register(f"{name}.mar")
            place = server.models.registry.get(name, None).archive.model_dir / "venv"
            assert await answer(server, name) == f"{version} {place}"


async def test_without_the_setting_nothing_is_installed(store: Path, tmp_path: Path) -> None:
    put_model(store, "plain", wanted(tmp_path, "tincture==1.0"))
    async with running_server(model_store=store, temp_dir=tmp_path) as server:
        with pytest.raises(WorkerStartFailed) as raised:
            await server.models.register("plain.mar")
        assert raised.value.hint == "ModuleNotFoundError: No module named 'tincture'"


async def test_a_model_whose_packages_cannot_be_installed_is_not_registered(store: Path, tmp_path: Path) -> None:
    put_model(store, "broken", wanted(tmp_path, "tincture==7"))
    async with running_server(model_store=store, temp_dir=tmp_path, install_py_dep_per_model=True) as server:
        with pytest.raises(InvalidArchive) as raised:
            await server.models.register("broken.mar")
        assert raised.value.message == "Custom pip package installation failed for model broken"
        assert server.models.list_models() == []
        (store / "broken.mar").unlink()
        put_model(store, "broken", wanted(tmp_path, "tincture==2.0"))
        await server.models.register("broken.mar")
        assert (await answer(server, "broken")).startswith("2.0")
