"""The use cases of the server by example; workers are fake, archives are real."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mariner.config import Config, MetricsMode
from mariner.devices import Accelerators, Vendor, threads_per_worker
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
from mariner.lifecycle import State
from mariner.memory import Footprint, Room
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
    def __init__(self, tmp_path: Path, accelerators: Accelerators | None = None, **settings: Any) -> None:
        self.store = tmp_path / "store"
        self.store.mkdir(exist_ok=True)
        self.engine = FakeEngine(echo)
        self.clock = FakeClock()
        self.server = ModelServer(
            Config(model_store=self.store, **settings),
            engine=self.engine,
            clock=self.clock,
            metrics=Metrics(),
            accelerators=accelerators or Accelerators(),
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


async def test_a_model_that_is_loaded_on_demand_is_healthy_until_it_cannot_be_loaded(scene: Scene) -> None:
    registered = await scene.server.register("echo", RegisterOptions(worker_bounds=(0, 2)))
    assert (registered.workers, registered.ready, registered.on_demand) == (0, True, True)
    assert scene.server.healthy()
    assert scene.server.serves("echo", None)
    assert await scene.predict(b"awake") == b"awake"
    (description,) = await scene.server.describe("echo", None)
    assert description["state"] == "ready"
    latest = description["autoscaling"].pop("lastDecision")
    assert description["autoscaling"] == {"enabled": True, "workerIdleTimeoutSec": 60.0}
    assert (latest["decision"], latest["reason"]) == ("1 worker", "a request came and there was none")
    (version,) = scene.server.registry
    (worker,) = version.pool.workers
    worker.state = State.BROKEN
    assert not scene.server.healthy()
    assert not scene.server.serves("echo", None)


@pytest.mark.parametrize(
    ("config", "devices", "gpus"),
    [("minWorkers: 1\nmaxWorkers: 3\n", [1, 0], ("GPU-a", "GPU-b")), ("deviceType: cpu\n", [None, None], ())],
)
async def test_memory_is_looked_for_on_the_gpus_that_the_next_workers_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, devices: list[int | None], gpus: tuple[str, ...]
) -> None:
    measured = []

    def measure(wanted: list[int | None], **known: Any) -> Room:
        measured.append((wanted, known))
        return Room(1, "it is full")

    monkeypatch.setattr("mariner.loading.measure_room", measure)
    scene = Scene(tmp_path, accelerators=Accelerators(Vendor.NVIDIA, ("GPU-a", "GPU-b")))
    scene.add("echo", config=config)
    await scene.server.register("echo", ONE)
    (version,) = scene.server.registry
    assert version.pool.recipe.room is not None
    ready = [Footprint(5, 0)]
    assert await version.pool.recipe.room(2, ready, []) == Room(1, "it is full")
    assert measured == [(devices, {"ready": ready, "coming": [], "gpus": gpus})]


async def test_a_range_of_workers_shares_the_processors_as_if_all_were_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environments = []
    for autoscale in ("true", "false"):
        scene.add(autoscale, config=f"minWorkers: 1\nmaxWorkers: 1000\nautoscale: {autoscale}\n")
        await scene.server.register(autoscale)
        environments.append(scene.engine.processes[-1].spec.environment["OMP_NUM_THREADS"])
    assert environments == ["1", str(threads_per_worker(1))]


async def test_why_workers_came_and_went_is_counted(scene: Scene) -> None:
    await scene.server.register("echo", RegisterOptions(worker_bounds=(2, 2)))
    await scene.server.scale("echo", None, 1, 1, synchronous=True)
    text = scene.server.metrics.expose(["mariner_workers", "mariner_worker_starts_total", "mariner_worker_stops_total"])
    labels = 'model_name="echo",model_version="1.0",'
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        f"mariner_workers{{{labels}}} 1.0",
        f'mariner_worker_starts_total{{{labels}reason="bounds",}} 2.0',
        f'mariner_worker_stops_total{{{labels}reason="bounds",}} 1.0',
    ]


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
        "workers", "jobQueueStatus", "state",
    ]  # fmt: skip
    (worker,) = description["workers"]
    assert worker["status"] == "READY"
    assert worker["startTime"].endswith("Z")
    assert description["jobQueueStatus"] == {"remainingCapacity": 100, "pendingRequests": 0}


async def test_a_model_without_sequences_is_described_with_none(scene: Scene) -> None:
    await scene.server.register("echo")
    (description,) = await scene.server.describe("echo", None)
    assert [description["maxNumSequence"], description["maxSequenceJobQueueSize"]] == [0, 0]


async def test_a_registration_cannot_ask_for_a_million_workers(scene: Scene) -> None:
    with pytest.raises(BadRequest, match="asks for 1000000 workers"):
        await scene.server.register("echo", RegisterOptions(initial_workers=10**6))
    assert scene.server.list_models() == []


async def test_a_worker_on_a_gpu_says_how_busy_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, accelerators=Accelerators(Vendor.NVIDIA, ("GPU-a", "GPU-b")))
    scene.add("echo")
    await scene.server.register("echo", RegisterOptions(initial_workers=3))
    monkeypatch.setattr("mariner.model_server.read_gpu_usage", lambda gpus: {1: f"gpuId::1 of {len(gpus)}"})
    (description,) = await scene.server.describe("echo", None)
    assert description["deviceType"] == "gpu"
    assert [(worker["gpu"], worker["gpuUsage"]) for worker in description["workers"]] == [
        (True, "gpuId::0"),
        (True, "gpuId::1 of 2"),
        (True, "gpuId::0"),
    ]


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


async def test_an_archive_with_another_hash_is_refused(scene: Scene) -> None:
    with zipfile.ZipFile(scene.store / "packed.mar", "w") as file:
        file.writestr("handler.py", "def handle(data, context):\n    return data\n")
    digest = hashlib.sha256((scene.store / "packed.mar").read_bytes()).hexdigest()
    options = RegisterOptions(model_name="packed", handler="handler.py", sha256="0" * 64)
    with pytest.raises(InvalidArchive, match=f"its sha256 is {digest}"):
        await scene.server.register("packed.mar", options)
    await scene.server.register("packed.mar", dataclasses.replace(options, sha256=digest.upper()))
    assert scene.server.list_models() == [("packed", "packed.mar")]


async def test_signing_a_download_needs_credentials(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(
        BadRequest, match="s3_sse_kms needs AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY in the environment"
    ):
        await scene.server.register("https://127.0.0.1:1/m.mar", RegisterOptions(s3_sse_kms=True))


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


async def states(scene: Scene, name: str) -> list[str]:
    return [version["state"] for version in await scene.server.describe(name, None)]


async def test_a_version_says_whether_it_can_answer(scene: Scene) -> None:
    scene.add("broken", config="maxRetryTimeoutInSec: 0\n")
    await scene.server.register("broken")
    assert await states(scene, "broken") == ["unloaded"]
    scene.engine.loads = False
    await scene.server.scale("broken", None, 1, 1, synchronous=False)
    assert await states(scene, "broken") == ["loading"]
    (await scene.engine.loading()).loaded("no", ok=False)
    await settle()
    assert await states(scene, "broken") == ["broken"]
    await scene.server.scale("broken", None, 1, 1, synchronous=False)
    (await scene.engine.loading(1)).loaded()
    await settle()
    assert await states(scene, "broken") == ["ready"]


async def test_a_version_that_goes_is_described_until_it_has_gone(scene: Scene) -> None:
    scene.engine.handler = None
    await scene.server.register("echo", ONE)
    answer = asyncio.create_task(scene.predict(b"x"))
    await settle()
    going = asyncio.create_task(scene.server.unregister("echo"))
    await settle()
    assert await states(scene, "echo") == ["draining"]
    assert [v["modelVersion"] for v in await scene.server.describe("echo", "1.0")] == ["1.0"]
    assert len(await scene.server.describe("echo", None, all_versions=True)) == 1
    for name, version in (("echo", "2.0"), ("other", None)):
        with pytest.raises(ModelNotFound, match=f"Model not found: {name}"):
            await scene.server.describe(name, version)
    with pytest.raises(ModelNotFound):
        scene.server.readiness("echo", None)
    (process,) = scene.engine.processes
    process.reply(process.batches[0], b"y")
    assert await answer == b"y"
    await going
    with pytest.raises(ModelNotFound):
        await scene.server.describe("echo", None)


async def test_the_server_is_ready_when_its_initial_models_are(scene: Scene) -> None:
    scene.engine.loads = False
    assert scene.server.ready()
    await scene.server.load_initial_models(["echo"])
    assert (scene.server.ready(), scene.server.healthy()) == (False, True)
    (await scene.engine.loading()).loaded()
    await settle()
    assert scene.server.ready()
    scene.add("later")
    await scene.server.register("later", ONE, synchronous=False)
    assert scene.server.ready()
    await scene.server.scale("echo", None, 0, 0, synchronous=False)
    assert scene.server.ready()  # nobody waits for a worker that is not wanted


async def test_the_server_is_not_ready_while_a_model_is_broken(scene: Scene) -> None:
    scene.add("broken", config="maxRetryTimeoutInSec: 0\n")
    scene.engine.loads = False
    await scene.server.register("broken", ONE, synchronous=False)
    assert scene.server.ready()
    (await scene.engine.loading()).loaded("no", ok=False)
    await settle()
    assert not scene.server.ready()


async def test_an_initial_model_that_cannot_be_read_keeps_the_server_from_being_ready(scene: Scene) -> None:
    await scene.server.load_initial_models(["echo", "other=absent"])
    await settle()
    assert not scene.server.ready()
    scene.add("absent")
    await scene.server.register("absent")
    assert scene.server.ready()


async def test_a_stopping_server_is_not_ready(scene: Scene) -> None:
    await scene.server.drain(1.0)
    assert not scene.server.ready()


async def test_the_only_initial_model_has_one_name(scene: Scene) -> None:
    scene.add("newer", name="echo", version="2.0")
    scene.add("other")
    await scene.server.register("other")
    assert scene.server.only_initial_model() is None
    await scene.server.load_initial_models(["echo", "newer"])
    assert scene.server.only_initial_model() == "echo"
    await scene.server.load_initial_models(["third=other"])
    assert scene.server.only_initial_model() is None


@pytest.mark.parametrize(
    ("file", "platform"),
    [("model.pt", "pytorch_pt"), ("m.PT2", "pytorch_pt2"), ("m.onnx", "onnx_onnxv1"), (None, "python")],
)
async def test_metadata_name_versions_and_the_format_of_the_weights(
    scene: Scene, file: str | None, platform: str
) -> None:
    scene.add("newer", name="echo", version="2.0")
    manifest = scene.store / "newer" / "MAR-INF" / "MANIFEST.json"
    if file is not None:
        manifest.write_text(manifest.read_text().replace('"model": {', f'"model": {{"serializedFile": "{file}", '))
        (scene.store / "newer" / file).touch()
    await scene.server.register("echo")
    await scene.server.register("newer")
    metadata = scene.server.metadata("echo", "2.0")
    assert (metadata.name, metadata.versions, metadata.platform) == ("echo", ["1.0", "2.0"], platform)
    assert scene.server.metadata("echo", None).platform == "python"
    with pytest.raises(VersionNotFound):
        scene.server.metadata("echo", "3.0")


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


# -- metrics ---------------------------------------------------------------------------------------------------------


async def test_the_queue_of_each_version_is_a_metric(scene: Scene) -> None:
    scene.engine.handler = None
    await scene.server.register("echo", ONE)
    calls = [asyncio.create_task(scene.predict(b"")) for _ in range(3)]
    await settle()
    text = scene.server.metrics.expose(["mariner_queue_depth"])
    assert text.splitlines()[2:] == ['mariner_queue_depth{model_name="echo",model_version="1.0",} 2.0']
    for call in calls:
        call.cancel()


async def test_the_workers_that_have_a_process_are_known_by_it(scene: Scene) -> None:
    await scene.server.register("echo", RegisterOptions(initial_workers=2))
    assert scene.server.worker_pids() == [50_000, 50_001]


@pytest.mark.parametrize(("mode", "every"), [("PROMETHEUS", False), ("LOG", True), ("LEGACY", True)])
async def test_workers_send_every_update_where_logs_want_it(tmp_path: Path, mode: str, every: bool) -> None:
    scene = Scene(tmp_path, metrics_mode=MetricsMode[mode])
    scene.add("echo")
    await scene.server.register("echo", ONE)
    load = scene.engine.processes[0].load
    assert load is not None
    assert load.every_metric is every
