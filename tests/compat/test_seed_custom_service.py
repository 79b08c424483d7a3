"""The page on custom services, whose sample file runs as it is: requirement by requirement.

===  ===============================================================================================================
B1   ``test_b1_b2_…``
B2   ``test_b1_b2_…``
B3   ``test_b3_…``
B4   ``test_b4_…``
B5   ``test_b5_…``
B6   ``test_b6_…``
B7   ``test_b7_…``; a handler that insists on full batches needs ``batchingPolicy: fill`` here, because an idle worker
     takes what waits at once otherwise
B8   ``test_b8_…``, on a machine with a made-up ``nvidia-smi``; that PyTorch then computes there needs a GPU
B9   ``test_b9_…``: the snippet asks whether there are GPUs, so workers for the CPU see none
B10  ``test_b10_b11_…``
B11  ``test_b10_b11_…``; more of the archiver: ``e2e/test_archiver_commands.py``
B12  ``test_b12_…``
B13  the routes everywhere here; ``test_b13_…``
===  ===============================================================================================================
"""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gpus import install_nvidia_smi
from test_serving import Client

from mariner.auth import Listener
from mariner.jobs import Part, Request, pack_headers
from mariner.model_settings import RegisterOptions
from mariner.serve import Server
from mariner.testing import running_server
from terminal import Terminal

pytestmark = pytest.mark.slow

# The page's sample: its class, methods, attributes, object and function. It checks nothing and answers OK.
SAMPLE = """
import logging


class ModelHandler(object):
    def __init__(self):
        self.error = None
        self._context = None
        self._batch_size = 0
        self.initialized = False

    def initialize(self, context):
        self._context = context
        self._batch_size = context.system_properties["batch_size"]
        self.initialized = True

    def preprocess(self, batch):
        assert self._batch_size == len(batch), "Invalid input batch size: {}".format(len(batch))
        return None

    def inference(self, model_input):
        return None

    def postprocess(self, inference_output):
        return ["OK"] * self._batch_size

    def handle(self, data, context):
        model_input = self.preprocess(data)
        model_out = self.inference(model_input)
        return self.postprocess(model_out)


_service = ModelHandler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)

    if data is None:
        return None

    return _service.handle(data, context)
"""

# The sample with a notebook: what is called how often, by process.
WATCHED = """
import os

import model_handler


def note(what):
    with open("notes.txt", "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")


class Watched(model_handler.ModelHandler):
    def initialize(self, context):
        note("initialize")
        assert isinstance(context.system_properties["batch_size"], int)
        super().initialize(context)


model_handler._service = Watched()


def engage(data, context):
    note("load" if data is None else "predict")
    return model_handler.handle(data, context)
"""

DEVICES = """
import os


def show(data, context):
    gpu = context.system_properties.get("gpu_id")
    return data and [{"gpu": gpu, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")} for _ in data]
"""

COMMAND = """
torch-model-archiver --model-name sample --version 1.0 --model-file model.py --serialized-file weights.pth \
    --extra-files index_to_name.json --handler model_handler:handle --export-path store --model-path . --runtime python3
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


@pytest.fixture
def store(terminal: Terminal) -> Path:
    """A model store; beside it the files that archives are made of."""
    for name, text in (
        ("model_handler.py", SAMPLE),
        ("watched.py", WATCHED),
        ("devices.py", DEVICES),
        ("pairs.yaml", "batchSize: 2\nmaxBatchDelay: 100\nbatchingPolicy: fill\n"),
        ("gpus.yaml", "minWorkers: 2\nmaxWorkers: 2\ndeviceType: gpu\n"),
        ("cpu.yaml", "minWorkers: 1\nmaxWorkers: 1\ndeviceType: cpu\n"),
        ("model.py", "class Model:\n    pass\n"),
        ("weights.pth", ""),
        ("index_to_name.json", "{}"),
    ):
        (terminal.folder / name).write_text(text)
    return terminal.folder / "store"


def package(terminal: Terminal, name: str, handler: str, flags: str = "") -> None:
    terminal.run(
        f"torch-model-archiver --model-name {name} --version 1.0 --handler {handler} --export-path store {flags}"
    )


@asynccontextmanager
async def server_of(store: Path, *models: str) -> AsyncIterator[Server]:
    async with running_server(model_store=store, temp_dir=store.parent, load_models=models) as server:
        await server.models.wait_until_ready()
        yield server


async def ask(server: Server, model: str, count: int = 1) -> list[tuple[int, bytes]]:
    """So many requests that arrive together."""
    requests = [Request(str(number), pack_headers([]), [Part("body", "", b"x")]) for number in range(count)]
    replies = await asyncio.gather(*(server.models.predict(model, None, request) for request in requests))
    return [(reply.status, bytes(reply.body)) for reply in replies]


def notes(server: Server, model: str) -> list[tuple[str, str]]:
    """What the watched sample wrote down: what was called, in which process."""
    path = server.models.registry.get(model, None).archive.model_dir / "notes.txt"
    return [(what, pid) for what, pid in map(str.split, path.read_text().splitlines())]


async def test_b1_b2_a_function_of_any_name_answers_requests(terminal: Terminal, store: Path) -> None:
    package(terminal, "watched", "watched:engage", "--extra-files model_handler.py")
    async with server_of(store, "watched=watched.mar") as server:
        assert await ask(server, "watched") == [(200, b"OK")]


async def test_b3_each_load_of_a_worker_calls_it_once_without_data(terminal: Terminal, store: Path) -> None:
    package(terminal, "watched", "watched:engage", "--extra-files model_handler.py")
    async with server_of(store, "started=watched.mar") as server:
        management = await Client.connect(server, Listener.MANAGEMENT)
        await management.ask("POST", "/models?url=watched.mar&model_name=posted&initial_workers=1&synchronous=true")
        scaled = await management.ask("PUT", "/models/posted?min_worker=3&synchronous=true")
        await management.close()
        assert scaled.status == 200
        for model, workers in (("started", 1), ("posted", 3)):
            loads = [pid for what, pid in notes(server, model) if what == "load"]
            assert len(loads) == len(set(loads)) == workers


async def test_b4_b6_it_is_initialised_once_in_the_life_of_a_worker(terminal: Terminal, store: Path) -> None:
    """With the batch size in the properties, or the watched sample would have failed to load."""
    package(terminal, "watched", "watched:engage", "--extra-files model_handler.py")
    async with server_of(store, "watched=watched.mar") as server:
        for _ in range(10):
            assert await ask(server, "watched") == [(200, b"OK")]
        assert [what for what, _ in notes(server, "watched")] == ["load", "initialize", *["predict"] * 10]


@pytest.mark.parametrize("handler", ["model_handler:handle", "model_handler.py"])
async def test_b5_the_sample_file_works_as_it_is(terminal: Terminal, store: Path, handler: str) -> None:
    package(terminal, "sample", handler)
    async with server_of(store, "sample=sample.mar") as server:
        client = await Client.connect(server)
        answer = await client.ask("POST", "/predictions/sample", b"anything")
        await client.close()
    assert (answer.status, answer.body) == (200, b"OK")


async def test_b7_a_batch_that_is_not_full_fails_the_assertion_and_nothing_else(
    terminal: Terminal, store: Path
) -> None:
    package(terminal, "pairs", "watched:engage", "--extra-files model_handler.py --config-file pairs.yaml")
    async with server_of(store, "pairs=pairs.mar") as server:
        assert await ask(server, "pairs", 2) == [(200, b"OK"), (200, b"OK")]
        ((status, body),) = await ask(server, "pairs", 1)
        assert (status, body) == (503, b"Prediction failed")
        assert await ask(server, "pairs", 2) == [(200, b"OK"), (200, b"OK")]
        assert len({pid for _, pid in notes(server, "pairs")}) == 1


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path / "tools"), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
async def test_b8_workers_go_round_the_gpus_and_are_told_theirs(terminal: Terminal, store: Path) -> None:
    package(terminal, "gpus", "devices:show", "--config-file gpus.yaml")
    async with server_of(store, "gpus=gpus.mar") as server:
        (described,) = await server.models.describe("gpus", None)
        ((_, body),) = await ask(server, "gpus")
    usage = [worker["gpuUsage"] for worker in described["workers"]]
    assert sorted(usage) == ["gpuId::0", "gpuId::1"]
    assert f"gpuId::{json.loads(body)['gpu']}" in usage


async def test_b8_without_gpus_the_id_is_none(terminal: Terminal, store: Path) -> None:
    package(terminal, "devices", "devices:show")
    async with running_server(model_store=store, temp_dir=store.parent, number_of_gpu=0) as server:
        await server.models.register("devices.mar", RegisterOptions(initial_workers=1))
        ((_, body),) = await ask(server, "devices")
    assert json.loads(body)["gpu"] is None


@pytest.mark.usefixtures("two_gpus")
async def test_b9_a_worker_for_the_cpu_sees_no_gpu(terminal: Terminal, store: Path) -> None:
    package(terminal, "cpu", "devices:show", "--config-file cpu.yaml")
    async with server_of(store, "cpu=cpu.mar") as server:
        ((_, body),) = await ask(server, "cpu")
    assert json.loads(body) == {"gpu": None, "visible": ""}


async def test_b10_b11_the_documented_command_packages_the_entry_point(terminal: Terminal, store: Path) -> None:
    terminal.run(COMMAND)
    with zipfile.ZipFile(store / "sample.mar") as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        entries = set(archive.namelist())
    assert manifest["model"]["handler"] == "model_handler:handle"
    assert entries >= {"model_handler.py", "model.py", "weights.pth", "index_to_name.json"}
    async with server_of(store, "sample=sample.mar") as server:
        assert await ask(server, "sample") == [(200, b"OK")]


@pytest.mark.parametrize("runtime", ["python", "python3"])
async def test_b12_both_runtimes_load(terminal: Terminal, store: Path, runtime: str) -> None:
    package(terminal, "sample", "model_handler:handle", f"--runtime {runtime}")
    async with server_of(store, "sample=sample.mar") as server:
        assert await ask(server, "sample") == [(200, b"OK")]


@pytest.mark.parametrize("parameter", ["initial_workers", "initial-workers"])
async def test_b13_both_spellings_of_the_initial_workers_count(terminal: Terminal, store: Path, parameter: str) -> None:
    package(terminal, "sample", "model_handler:handle")
    async with server_of(store) as server:
        management = await Client.connect(server, Listener.MANAGEMENT)
        answer = await management.ask("POST", f"/models?url=sample.mar&{parameter}=2&synchronous=true")
        (described,) = (await management.ask("GET", "/models/sample")).json
        await management.close()
    assert answer.status == 200
    assert [worker["status"] for worker in described["workers"]] == ["READY", "READY"]
