"""Reloading archives that changed; workers are fake, archives are real."""

from __future__ import annotations

import asyncio
import json
import logging
import zipfile
from pathlib import Path

import pytest
from test_model_server import ONE, Scene

from mariner.errors import Draining
from mariner.testing import settle

MANIFEST = {"runtime": "python", "archiverVersion": "0.12.0", "createdOn": "01/01/2026 00:00:00"}


def pack(path: Path, *, version: str = "1.0", config: str = "", name: str = "echo") -> None:
    """Writes an archive beside its place and moves it there, as a deployment should."""
    model = {"modelName": name, "modelVersion": version, "handler": "handler.py", "configFile": "c.yaml"}
    with zipfile.ZipFile(path.with_suffix(".new"), "w") as file:
        file.writestr("handler.py", "def handle(data, context):\n    return data\n")
        file.writestr("c.yaml", config)
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({**MANIFEST, "model": model}))
    path.with_suffix(".new").replace(path)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    pack(scene.store / "echo.mar")
    return scene


async def test_what_has_not_changed_is_left_alone(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    await scene.server.register("echo.mar", ONE)
    with caplog.at_level(logging.INFO):
        await scene.server.reload()
    assert len(scene.engine.processes) == 1
    assert "No archive has changed since it was loaded." in caplog.messages


async def test_the_old_version_answers_until_the_new_one_is_ready(scene: Scene, tmp_path: Path) -> None:
    await scene.server.register("echo.mar", ONE)
    (old,) = scene.server.registry
    pack(scene.store / "echo.mar", config="batchSize: 7\n")
    scene.engine.loads = False
    reload = asyncio.create_task(scene.server.reload())
    new_process = await scene.engine.loading(1)
    assert scene.server.registry.get("echo") is old
    assert await scene.predict(b"meanwhile") == b"meanwhile"
    assert len(scene.engine.processes[0].batches) == 1
    new_process.loaded()
    await reload
    (new,) = scene.server.registry
    assert new.settings.batch_size == 7
    assert await scene.predict(b"now") == b"now"
    assert len(new_process.batches) == 1
    assert not scene.engine.processes[0].alive
    assert [path.resolve() for path in (tmp_path / "unpacked" / "models").iterdir()] == [new.archive.holder.resolve()]


async def test_what_the_old_version_runs_is_answered_by_it(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    process = scene.engine.processes[0]
    scene.engine.handler = None
    running = asyncio.create_task(scene.predict(b"slow"))
    await settle()
    pack(scene.store / "echo.mar")
    reload = asyncio.create_task(scene.server.reload())
    await scene.engine.loading(1)
    while scene.server.registry.get("echo").pool.workers[0].pid == process.pid:
        await settle()
    assert process.alive
    process.reply(process.batches[0], b"done")
    await reload
    assert await running == b"done"


async def test_what_waits_for_a_worker_that_has_died_is_answered_by_the_new_version(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    scene.engine.loads = False
    scene.engine.processes[0].die()
    await scene.engine.loading(1)
    waiting = asyncio.create_task(scene.predict(b"patient"))
    await settle()
    pack(scene.store / "echo.mar")
    reload = asyncio.create_task(scene.server.reload())
    (await scene.engine.loading(2)).loaded()
    await reload
    assert await waiting == b"patient"


async def test_a_new_number_takes_the_place_of_the_old_as_default_too(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    pack(scene.store / "other.mar", version="5.0")
    await scene.server.register("other.mar", ONE)
    pack(scene.store / "echo.mar", version="2.0")
    saved: list[str] = []
    scene.server.changed = lambda: saved.append("changed")
    await scene.server.reload()
    assert [version.version for version in scene.server.registry.versions("echo")] == ["2.0", "5.0"]
    assert scene.server.registry.get("echo").version == "2.0"
    assert saved == ["changed"]


async def test_a_number_that_is_taken_leaves_both_as_they_are(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    await scene.server.register("echo.mar", ONE)
    pack(scene.store / "other.mar", version="2.0")
    await scene.server.register("other.mar", ONE)
    before = list(scene.server.registry)
    pack(scene.store / "echo.mar", version="2.0")
    await scene.server.reload()
    assert list(scene.server.registry) == before
    assert "Model version 2.0 is already registered for model echo" in caplog.text
    assert not scene.engine.processes[2].alive


@pytest.mark.parametrize("fault", ["damaged", "removed", "does not load"])
async def test_what_cannot_be_loaded_leaves_the_old_one_serving_and_says_why(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    await scene.server.register("echo.mar", ONE)
    (old,) = scene.server.registry
    if fault == "damaged":
        (scene.store / "echo.mar").write_bytes(b"PK no archive")
    elif fault == "removed":
        (scene.store / "echo.mar").unlink()
    else:
        pack(scene.store / "echo.mar")
        scene.engine.loads = False
    reload = asyncio.create_task(scene.server.reload())
    if fault == "does not load":
        (await scene.engine.loading(1)).loaded("no such module: nowhere", ok=False)
    await reload
    assert list(scene.server.registry) == [old]
    assert await scene.predict(b"still here") == b"still here"
    assert len(list((tmp_path / "unpacked" / "models").iterdir())) == 1
    (line,) = (message for message in caplog.messages if "could not be reloaded" in message)
    assert line.startswith("Model echo version 1.0 could not be reloaded: ")
    why = {"damaged": "archive", "removed": "Model not found at: echo.mar", "does not load": "no such module: nowhere"}
    assert why[fault] in line


async def test_scaling_and_wishes_of_the_registration_are_kept(scene: Scene) -> None:
    options = ONE.__class__(model_name="mine", initial_workers=1, batch_size=3)
    await scene.server.register("echo.mar", options)
    await scene.server.scale("mine", None, 2, 4, synchronous=True)
    pack(scene.store / "echo.mar", name="renamed")
    await scene.server.reload()
    (new,) = scene.server.registry
    assert (new.name, new.settings.batch_size) == ("mine", 3)
    assert (new.pool.min_workers, new.pool.max_workers, len(new.pool.workers)) == (2, 4, 2)


async def test_a_model_that_is_scaled_while_its_successor_loads_keeps_that_number(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    pack(scene.store / "echo.mar")
    scene.engine.loads = False
    reload = asyncio.create_task(scene.server.reload())
    process = await scene.engine.loading(1)
    await scene.server.scale("echo", None, 3, 3, synchronous=False)
    process.loaded()
    await settle()
    assert len(scene.server.registry.get("echo").pool.workers) == 3
    await reload


async def test_a_directory_has_changed_when_one_of_its_files_has(scene: Scene) -> None:
    scene.add("tree")
    await scene.server.register("tree", ONE)
    (version,) = scene.server.registry
    assert not version.archive.changed()
    (scene.store / "tree" / "__pycache__").mkdir()
    (scene.store / "tree" / "__pycache__" / "handler.pyc").touch()
    assert not version.archive.changed()
    (scene.store / "tree" / "extra.txt").write_text("more")
    assert version.archive.changed()


async def test_a_stop_during_a_reload_leaves_no_worker(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    pack(scene.store / "echo.mar")
    scene.engine.loads = False
    reload = asyncio.create_task(scene.server.reload())
    await scene.engine.loading(1)
    assert await scene.server.drain(1.0)
    await reload
    assert [process.alive for process in scene.engine.processes] == [False, False]
    with pytest.raises(Draining):
        await scene.predict(b"late")


async def test_a_version_that_was_unregistered_meanwhile_stays_so(scene: Scene) -> None:
    await scene.server.register("echo.mar", ONE)
    pack(scene.store / "echo.mar")
    scene.engine.loads = False
    reload = asyncio.create_task(scene.server.reload())
    process = await scene.engine.loading(1)
    await scene.server.unregister("echo")
    process.loaded()
    await reload
    assert list(scene.server.registry) == []
    assert not process.alive


async def test_a_version_that_has_grown_is_replaced_by_as_many_workers(scene: Scene) -> None:
    pack(scene.store / "echo.mar", config="minWorkers: 1\nmaxWorkers: 4\n")
    await scene.server.register("echo.mar")
    (old,) = scene.server.registry
    old.pool.scaler.start_with(3)
    pack(scene.store / "echo.mar", config="minWorkers: 1\nmaxWorkers: 2\n")
    await scene.server.reload()
    (new,) = scene.server.registry
    assert new is not old
    assert (new.pool.min_workers, new.pool.max_workers, len(new.pool.workers)) == (1, 2, 2)
