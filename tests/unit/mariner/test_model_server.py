"""The use cases of the server by example; workers are fake, archives are real."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mariner.config import Config
from mariner.devices import Accelerators
from mariner.errors import (
    BadRequest,
    Conflict,
    DefaultVersionInUse,
    Draining,
    InvalidArchive,
    ModelNotFound,
    NoWorker,
    VersionNotFound,
    WorkerStartFailed,
)
from mariner.jobs import Part, Request
from mariner.metrics import Metrics
from mariner.model_server import ModelServer
from mariner.model_settings import RegisterOptions
from mariner.testing import FakeClock, FakeEngine, settle


def echo(requests: Sequence[Request]) -> list[bytes]:
    bodies: list[bytes] = []
    for request in requests:
        if b"describe" in request.headers:
            bodies.append(b'{"about": "an echo"}')
        else:
            value = request.parts[0].value
            assert isinstance(value, bytes)
            bodies.append(value)
    return bodies


class Scene:
    def __init__(self, tmp_path: Path, **settings: Any) -> None:
        self.store = tmp_path / "store"
        self.store.mkdir(exist_ok=True)
        self.engine = FakeEngine(echo)
        self.clock = FakeClock()
        self.server = ModelServer(
            Config(model_store=self.store, **settings),
            engine=self.engine,
            clock=self.clock,
            metrics=Metrics(),
            accelerators=Accelerators(),
            temp_dir=tmp_path / "unpacked",
        )
        (tmp_path / "unpacked").mkdir(exist_ok=True)

    def add(self, directory: str, *, version: str = "1.0", name: str | None = None, config: str | None = None) -> None:
        """Puts a model into the store."""
        place = self.store / directory
        (place / "MAR-INF").mkdir(parents=True)
        (place / "handler.py").write_text("def handle(data, context):\n    return data\n")
        model = {"modelName": name or directory, "modelVersion": version, "handler": "handler.py"}
        if config is not None:
            (place / "model-config.yaml").write_text(config)
            model["configFile"] = "model-config.yaml"
        manifest = {
            "runtime": "python",
            "model": model,
            "archiverVersion": "0.12.0",
            "createdOn": "01/01/2026 00:00:00",
        }
        (place / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))

    async def predict(self, body: bytes, name: str = "echo", version: str | None = None) -> bytes:
        reply = await self.server.predict(name, version, Request("id", b"", [Part("body", "", body)]))
        return bytes(reply.body)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.add("echo")
    return scene


ONE = RegisterOptions(initial_workers=1)


async def test_a_registered_model_answers(scene: Scene) -> None:
    registered = await scene.server.register("echo", ONE)
    assert (registered.name, registered.version, registered.workers, registered.ready) == ("echo", "1.0", 1, True)
    assert await scene.predict(b"hello") == b"hello"


async def test_without_workers_it_is_registered_but_cannot_serve(scene: Scene) -> None:
    registered = await scene.server.register("echo")
    assert registered.workers == 0
    with pytest.raises(NoWorker):
        await scene.predict(b"hello")


async def test_the_first_version_is_the_default_until_another_is_chosen(scene: Scene) -> None:
    scene.add("newer", name="echo", version="2.0")
    await scene.server.register("echo", ONE)
    await scene.server.register("newer", ONE)
    assert scene.server.list_models() == [("echo", "echo")]
    scene.server.set_default("echo", "2.0")
    assert scene.server.list_models() == [("echo", "newer")]
    assert await scene.predict(b"old", version="1.0") == b"old"
    with pytest.raises(VersionNotFound, match=r"Model version 3\.0 does not exist for model echo"):
        scene.server.set_default("echo", "3.0")


async def test_a_version_is_registered_once(scene: Scene) -> None:
    await scene.server.register("echo")
    with pytest.raises(Conflict, match=r"Model version 1\.0 is already registered for model echo"):
        await scene.server.register("echo")


async def test_a_model_that_cannot_load_is_not_left_behind(scene: Scene, tmp_path: Path) -> None:
    scene.engine.loads = False
    call = asyncio.create_task(scene.server.register("echo", ONE))
    process = await scene.engine.loading()
    process.loaded("ModuleNotFoundError: No module named 'nowhere'", ok=False)
    with pytest.raises(WorkerStartFailed, match=r"Failed to start workers for model echo version: 1\.0") as failure:
        await call
    assert "nowhere" in failure.value.hint
    assert scene.server.list_models() == []
    assert list((tmp_path / "unpacked" / "models").iterdir()) == []


async def test_an_asynchronous_registration_does_not_wait(scene: Scene) -> None:
    scene.engine.loads = False
    registered = await scene.server.register("echo", ONE, synchronous=False)
    assert not registered.ready
    (description,) = await scene.server.describe("echo", None)
    assert [worker["status"] for worker in description["workers"]] == ["UNLOADING"]


async def test_unregistering_answers_what_waits_and_frees_the_name(scene: Scene) -> None:
    await scene.server.register("echo", ONE)
    answers = [asyncio.create_task(scene.predict(f"{index}".encode())) for index in range(5)]
    await asyncio.sleep(0)
    await scene.server.unregister("echo")
    assert [await answer for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]
    with pytest.raises(ModelNotFound, match="Model not found: echo"):
        await scene.predict(b"late")
    await scene.server.register("echo", ONE)


async def test_the_default_version_stays_while_it_has_siblings(scene: Scene) -> None:
    scene.add("newer", name="echo", version="2.0")
    await scene.server.register("echo")
    await scene.server.register("newer")
    with pytest.raises(DefaultVersionInUse, match="Cannot remove default version for model echo"):
        await scene.server.unregister("echo", "1.0")
    await scene.server.unregister("echo", "2.0")
    await scene.server.unregister("echo")


async def test_scaling_changes_the_number_of_workers(scene: Scene) -> None:
    await scene.server.register("echo")
    assert await scene.server.scale("echo", None, 2, 2, synchronous=True)
    (description,) = await scene.server.describe("echo", None)
    assert [worker["id"] for worker in description["workers"]] == ["9000", "9001"]
    assert not await scene.server.scale("echo", None, 1, 1, synchronous=False)
    (description,) = await scene.server.describe("echo", None)
    assert [worker["id"] for worker in description["workers"]] == ["9000"]


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [(-1, 1, "negative"), (2, 1, "cannot be less than min_worker"), (10**9, 10**9, "more than 1024")],
)
async def test_impossible_numbers_of_workers_are_refused(scene: Scene, least: int, most: int, text: str) -> None:
    await scene.server.register("echo")
    with pytest.raises(BadRequest, match=text):
        await scene.server.scale("echo", None, least, most, synchronous=True)


async def test_the_description_has_every_key_of_the_contract_in_order(scene: Scene) -> None:
    await scene.server.register("echo", ONE)
    (description,) = await scene.server.describe("echo", None)
    assert list(description) == [
        "modelName", "modelVersion", "modelUrl", "runtime", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay",
        "responseTimeout", "startupTimeout", "maxRetryTimeoutInSec", "clientTimeoutInMills", "parallelType",
        "parallelLevel", "deviceType", "continuousBatching", "useJobTicket", "useVenv", "stateful",
        "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize", "loadedAtStartup",
        "workers", "jobQueueStatus",
    ]  # fmt: skip
    (worker,) = description["workers"]
    assert worker["status"] == "READY"
    assert worker["startTime"].endswith("Z")
    assert description["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}


@pytest.mark.parametrize(("config", "sequences"), [("", 0), ("sequenceBatching: true\nsequenceMaxIdleMSec: 9\n", 1)])
async def test_only_a_model_with_sequences_is_described_with_some(scene: Scene, config: str, sequences: int) -> None:
    scene.add("model", config=config)
    await scene.server.register("model")
    (description,) = await scene.server.describe("model", None)
    assert [description["maxNumSequence"], description["maxSequenceJobQueueSize"]] == [sequences, sequences]


async def test_a_registration_cannot_ask_for_a_million_workers(scene: Scene) -> None:
    with pytest.raises(BadRequest, match="asks for 1000000 workers"):
        await scene.server.register("echo", RegisterOptions(initial_workers=10**6))
    assert scene.server.list_models() == []


async def test_all_versions_are_described_on_request(scene: Scene) -> None:
    scene.add("newer", name="echo", version="2.0")
    await scene.server.register("echo")
    await scene.server.register("newer")
    versions = await scene.server.describe("echo", None, all_versions=True)
    assert [version["modelVersion"] for version in versions] == ["1.0", "2.0"]


async def test_a_handler_may_describe_itself(scene: Scene) -> None:
    await scene.server.register("echo", ONE)
    (description,) = await scene.server.describe("echo", None, customized=True)
    assert description["customizedMetadata"] == {"about": "an echo"}


async def test_describing_a_handler_needs_a_worker(scene: Scene) -> None:
    await scene.server.register("echo")
    with pytest.raises(NoWorker, match="has no worker to serve describe request"):
        await scene.server.describe("echo", None, customized=True)


async def test_the_model_config_decides_the_workers_before_the_caller(scene: Scene) -> None:
    scene.add("configured", config="minWorkers: 2\nmaxWorkers: 4\nbatchSize: 8\nmaxBatchDelay: 50\n")
    registered = await scene.server.register("configured", RegisterOptions(initial_workers=1, batch_size=4))
    (description,) = await scene.server.describe("configured", None)
    assert registered.workers == 2
    keys = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")
    assert [description[key] for key in keys] == [2, 4, 4, 50]


async def test_start_up_loads_everything_in_the_store_and_survives_what_is_broken(scene: Scene) -> None:
    (scene.store / "junk.mar").write_bytes(b"no archive")
    await scene.server.load_initial_models(["ALL"])
    await settle()
    assert [name for name, _ in scene.server.list_models()] == ["echo"]
    assert await scene.predict(b"hello") == b"hello"


async def test_of_two_versions_at_start_up_the_first_named_is_the_default_though_it_was_read_last(scene: Scene) -> None:
    scene.add("older", name="digits", version="1.0")
    scene.add("newer", name="digits", version="2.0")
    with zipfile.ZipFile(scene.store / "older.mar", "w") as archive:  # takes longer to read than a directory
        for path in (scene.store / "older").rglob("*.*"):
            archive.write(path, path.relative_to(scene.store / "older"))
        for number in range(200):
            archive.writestr(f"extra/{number}", "")
    await scene.server.load_initial_models(["older.mar", "newer"])
    assert scene.server.registry.get("digits").version == "1.0"


async def test_a_start_up_model_can_be_given_a_name(scene: Scene) -> None:
    await scene.server.load_initial_models(["other=echo"])
    await settle()
    assert await scene.predict(b"hello", "other") == b"hello"


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        ("absent.mar", ModelNotFound, r"Model not found at: absent\.mar"),
        ("../echo", ModelNotFound, "Relative path is not allowed"),
        ("", ModelNotFound, "empty url"),
        ("junk.mar", InvalidArchive, "junk"),
    ],
)
async def test_what_is_no_archive_is_refused(scene: Scene, url: str, error: type[Exception], text: str) -> None:
    (scene.store / "junk.mar").write_bytes(b"no archive")
    with pytest.raises(error, match=text):
        await scene.server.register(url)
    assert scene.server.list_models() == []


async def test_an_unknown_runtime_is_refused(scene: Scene) -> None:
    with pytest.raises(BadRequest, match="Invalid RuntimeType value: cobol"):
        await scene.server.register("echo", RegisterOptions(runtime="cobol"))


async def test_a_model_without_workers_is_healthy_and_a_parked_one_is_not(scene: Scene) -> None:
    scene.add("broken", config="maxRetryTimeoutInSec: 0\n")
    await scene.server.register("echo")
    assert scene.server.healthy()
    scene.engine.loads = False
    await scene.server.register("broken", ONE, synchronous=False)
    await settle()
    scene.engine.processes[0].loaded("no", ok=False)
    await settle()
    assert not scene.server.healthy()


async def test_a_stopping_server_answers_what_it_has_and_takes_nothing_new(scene: Scene, tmp_path: Path) -> None:
    await scene.server.register("echo", ONE)
    answer = asyncio.create_task(scene.predict(b"last"))
    await asyncio.sleep(0)
    assert await scene.server.drain(30.0)
    assert await answer == b"last"
    with pytest.raises((Draining, ModelNotFound)):
        await scene.predict(b"late")
    with pytest.raises(Draining):
        await scene.server.register("echo")
    assert list((tmp_path / "unpacked" / "models").iterdir()) == []
