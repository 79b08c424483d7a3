"""The page of the handler factory: how archives live, what the factory does, its build script, its configuration.

===  ===============================================================================================================
A1   ``test_a1_…``
A2   ``e2e/test_archiver_commands.py``, every documented flag
A3   ``test_a3_…``
A4   ``test_a4_a6_…``
A5   ``integration/test_model_dependencies.py``, two models with two versions of one package
A6   ``test_a4_a6_…``
A6a  ``docs/test_examples_without_torch.py``
A7   ``test_a7_a14_…``
A8   ``test_a7_a14_…``, whose handler file has neither a class nor a function ``handle``; the original's own
     ``base_handler.py``: ``test_a8_…``
A9   ``unit/ts/test_factory.py``: ``test_without_other_functions_numbers_go_through_the_model``
A10  ``test_a7_a14_…``: the keywords reach ``init_function``, the others take one argument
A11  ``test_a11_…``; wrong keys and empty checkpoints: ``unit/ts/test_factory.py``
A12  ``test_a12_…`` on the CPU; a GPU is needed for the rest
A13  ``test_a13_…``
A14  ``test_a7_a14_…``
A15  ``test_a15_a16_…``
A16  ``test_a15_a16_…``
A17  ``test_a25_a26_…``
A18  ``integration/test_model_dependencies.py``: the package is named in the requirements file alone
A19  ``test_a19_…``, with a small network in the place of torchvision's, which does not install beside CPU builds
A20  ``docs/test_examples_factory.py``: each flag missing, an unknown one
A21  ``docs/test_examples_factory.py``: usage on one line
A22  ``docs/test_examples_factory.py``: manifest, a second build
A23  ``test_a23_…``
A24  ``test_a24_…``
A25  ``test_a25_a26_…``
A26  ``test_a25_a26_…``; other formats, a damaged one: ``unit/ts/test_factory.py``
A27  ``unit/ts/test_factory.py``: an absent bundle is named, entries that lead out are refused
A28  ``test_a28_…``: the bound and the order; that a real GPU enforces it needs one. A warning without one:
     ``unit/ts/test_factory.py``; running out is status 507: ``integration/test_serving.py``
A29  ``test_a29_…``, with A31 and A32
A30  ``unit/mariner/test_batching.py``, both policies with a clock that moves when told: here a batch need not wait
A33  ``test_a33_…``, on a machine with a made-up ``nvidia-smi``
A34  ``test_a34_…``, likewise; an unknown id: ``unit/mariner/test_devices.py``
A35  ``test_a35_…``
===  ===============================================================================================================
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import torch
from gpus import install_nvidia_smi
from PIL import Image
from test_serving import Client, put_model

from mariner.auth import Listener
from mariner.jobs import Part, Request, pack_headers
from mariner.model_settings import RegisterOptions
from mariner.serve import Server
from mariner.testing import running_server
from terminal import Terminal
from ts.testing import run_handler

pytestmark = [pytest.mark.slow, pytest.mark.torch]

BASE = Path(__file__).parents[2] / "examples" / "factory" / "base"

# A model file as the page wants it: functions for one sample, and the handler; everything leaves a note.
MODEL_FILE = """
import os

import torch
from base_handler import handler_factory


def note(text):
    with open("notes.txt", "a") as notes:
        notes.write(text + "\\n")


def install_packages():
    note("install_packages")
    os.system("mkdir -p built && echo 'SCALE = 2.0' > built/parts.py")


def unpack_dependencies():
    note(f"unpack_dependencies, bundle {'there' if os.path.exists('pkg/sub/layers.py') else 'missing'}")
    os.system("printf 'cat dog cow' > names.txt")


def init_function(in_dim, layer_dims):
    note(f"init_function {in_dim} {layer_dims}")
    from built.parts import SCALE
    from pkg.sub.layers import Network

    return Network(in_dim, layer_dims, SCALE, note)


def preprocess(data):
    note("preprocess")
    return torch.tensor(data["x"])


def postprocess(data):
    note("postprocess")
    prediction = data.softmax(0)
    class_id = prediction.argmax().item()
    with open("names.txt") as names:
        return prediction[class_id].item(), class_id, names.read().split()[class_id]


handler = handler_factory(
    init_function=init_function,
    preprocess_function=preprocess,
    postprocess_function=postprocess,
    install_packages=install_packages,
    unpack_dependencies=unpack_dependencies,
    in_dim=2,
    layer_dims=[3],
)
"""

NETWORK = """
import torch


class Network(torch.nn.Module):
    def __init__(self, in_dim, layer_dims, scale, note):
        super().__init__()
        self.lin = torch.nn.Linear(in_dim, layer_dims[0])
        self.dropout = torch.nn.Dropout(0.9)
        self.scale, self.note = scale, note

    def forward(self, x):
        self.note(f"model {len(x)} on {self.lin.weight.device.type}")
        return self.dropout(self.lin(x)) * self.scale
"""

CONFIG = """
minWorkers: 1   # Minimum number of workers
maxWorkers: 1
maxBatchDelay: 4000
responseTimeout: 5200
batchSize: 4
deviceType: "gpu"
deviceIds: [0,1,2,3]
system:
  extraFiles: "test.tar.gz"
  maxGPUMemory: 500
"""

WEIGHTS = {
    "lin.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]),
    "lin.bias": torch.tensor([0.0, 0.1, 0.2]),
}


def build(terminal: Terminal, **changes: str) -> None:
    """What the page says to do with the files of :func:`write_files`."""
    flags = {
        "model_name": "toy",
        "model_file": "toy_model.py",
        "config_file": "model-config.yaml",
        "requirements_file": "requirements.txt",
        "checkpoint_file": "checkpoint.pth",
        "version": "1.0",
        "extra_files": "test.tar.gz",
        **changes,
    }
    terminal.run(" ".join([str(BASE / "build.sh"), *(f"--{flag} {value}" for flag, value in flags.items())]))


def write_files(folder: Path) -> None:
    (folder / "toy_model.py").write_text(MODEL_FILE)
    (folder / "model-config.yaml").write_text(CONFIG)
    (folder / "requirements.txt").touch()
    torch.save(WEIGHTS, folder / "checkpoint.pth")
    (folder / "pkg" / "sub").mkdir(parents=True)
    (folder / "pkg" / "sub" / "layers.py").write_text(NETWORK)
    with tarfile.open(folder / "test.tar.gz", "w") as bundle:  # not compressed, as the page's command makes it
        bundle.add(folder / "pkg", "pkg")


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


class Factory(NamedTuple):
    """A server with the archive of the page, loaded twice under different names."""

    server: Server
    archive: Path

    def model_dir(self, name: str) -> Path:
        return self.server.models.registry.get(name, None).archive.model_dir

    def notes(self, name: str) -> list[str]:
        return (self.model_dir(name) / "notes.txt").read_text().splitlines()

    async def ask(self, name: str, *samples: Any) -> list[Any]:
        """Requests that arrive together."""
        return await ask(self.server, name, *({"x": sample} for sample in samples))


async def ask(server: Server, name: str, *values: Any, version: str | None = None) -> list[Any]:
    requests = [
        Request(str(number), pack_headers([]), [Part("body", "application/json", json.dumps(value).encode())])
        for number, value in enumerate(values)
    ]
    replies = await asyncio.gather(*(server.models.predict(name, version, request) for request in requests))
    assert [reply.status for reply in replies] == [200] * len(replies)
    return [json.loads(bytes(reply.body)) for reply in replies]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Factory]:
    terminal = Terminal(tmp_path_factory.mktemp("factory"))
    write_files(terminal.folder)
    build(terminal)
    store = terminal.folder / "model-store"
    store.mkdir()
    archive = shutil.move(terminal.folder / "toy.mar", store / "toy.mar")
    async with running_server(model_store=store, temp_dir=terminal.folder, number_of_gpu=0) as server:
        await asyncio.gather(
            server.models.register("toy.mar"), server.models.register("toy.mar", RegisterOptions(model_name="again"))
        )
        yield Factory(server, archive)


# -- archive, build script --------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a1_the_archive_is_a_zip_with_all_that_was_named(factory: Factory) -> None:
    assert set(names_in(factory.archive)) == {
        "toy_model.py",
        "base_handler.py",
        "checkpoint.pth",
        "model-config.yaml",
        "requirements.txt",
        "test.tar.gz",
        "MAR-INF/MANIFEST.json",
    }


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


@pytest.mark.parametrize("checkpoint", ["weights.pt", "weights.pth"])
def test_a24_both_endings_of_checkpoints_are_loaded(terminal: Terminal, checkpoint: str) -> None:
    write_files(terminal.folder)
    torch.save({**WEIGHTS, "lin.bias": torch.tensor([0.0, 0.0, 9.0])}, terminal.folder / checkpoint)
    build(terminal, checkpoint_file=checkpoint)
    unpacked = terminal.folder / "unpacked"
    with zipfile.ZipFile(terminal.folder / "toy.mar") as archive:
        archive.extractall(unpacked)
    ((score, class_id, name),) = run_handler("toy_model.py", [{"body": {"x": [0.0, 0.0]}}], model_dir=unpacked)
    assert (class_id, name) == (2, "cow")
    assert score > 0.99


# -- the life of a model ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a3_each_load_has_a_fresh_directory_that_goes_with_it(factory: Factory) -> None:
    server = factory.server
    await server.models.register("toy.mar", RegisterOptions(model_name="third", initial_workers=0))
    first, third = factory.model_dir("toy"), factory.model_dir("third")
    assert first != third
    names = names_in(factory.archive)
    assert all((first / name).read_bytes() == (third / name).read_bytes() for name in names)
    await server.models.unregister("third")
    assert first.exists()
    assert not third.exists()


CLASS = """
from sibling import ANSWER


class Handler:
    def initialize(self, context):
        self.answer = ANSWER

    def handle(self, data, context):
        return [self.answer for _ in data]
"""
FUNCTION = "from sibling import ANSWER\n\n\ndef handle(data, context):\n    return data and [ANSWER for _ in data]\n"


@pytest.mark.parametrize("source", [CLASS, FUNCTION], ids=["class", "function"])
async def test_a4_a6_a_class_or_a_function_is_loaded_and_imports_what_lies_beside_it(
    tmp_path: Path, source: str
) -> None:
    put_model(tmp_path / "store", "model", source)
    (tmp_path / "store" / "model" / "sibling.py").write_text("ANSWER = 42\n")
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        await server.models.register("model", RegisterOptions(initial_workers=1))
        assert await ask(server, "model", "x") == [42]


async def test_a23_a_model_is_served_and_described_by_name_and_by_version(tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        put_model(tmp_path / "store", version, f"def handle(data, context):\n    return data and ['{version}']\n")
        manifest = tmp_path / "store" / version / "MAR-INF" / "MANIFEST.json"
        model = {"modelName": "model", "modelVersion": version, "handler": "handler.py"}
        manifest.write_text(json.dumps({"runtime": "python3", "model": model}))
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        for version in ("1.0", "2.0"):
            await server.models.register(version, RegisterOptions(initial_workers=1))
        client, management = await Client.connect(server), await Client.connect(server, Listener.MANAGEMENT)
        for path, version in (("model", "1.0"), ("model/1.0", "1.0"), ("model/2.0", "2.0")):
            assert (await client.ask("POST", f"/predictions/{path}")).body.decode() == version
            (described,) = (await management.ask("GET", f"/models/{path}")).json
            assert described["modelVersion"] == version
        await client.close()
        await management.close()


# -- the factory ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
async def test_a7_a14_a_tuple_becomes_an_array_of_score_number_and_name(factory: Factory) -> None:
    ((score, class_id, name),) = await factory.ask("toy", [2.0, 0.0])
    expected = (2 * torch.tensor([2.0, 0.1, -1.8])).softmax(0)
    assert score == pytest.approx(expected.max().item())
    assert (class_id, name) == (0, "cat")
    assert "init_function 2 [3]" in factory.notes("toy")


ORIGINAL_BASE = """
from inspect import currentframe


def handler_factory(init_function, **kwargs):
    class CustomHandler:
        def initialize(self, context):
            self.answer = init_function(**kwargs)

        def handle(self, data, context):
            return [self.answer for _ in data]

    CustomHandler.__module__ = currentframe().f_back.f_globals["__name__"]
    return CustomHandler
"""


async def test_a8_an_archive_may_bring_a_base_handler_of_its_own(tmp_path: Path) -> None:
    source = "from base_handler import handler_factory\nhandler = handler_factory(lambda a: a, a=42)\n"
    put_model(tmp_path / "store", "model", source)
    (tmp_path / "store" / "model" / "base_handler.py").write_text(ORIGINAL_BASE)
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        await server.models.register("model", RegisterOptions(initial_workers=1))
        assert await ask(server, "model", "x") == [42]


@pytest.mark.asyncio(loop_scope="module")
async def test_a11_predictions_are_those_of_the_checkpoint(factory: Factory) -> None:
    samples = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    local = torch.nn.Linear(2, 3)
    local.load_state_dict({name.removeprefix("lin."): value for name, value in WEIGHTS.items()})
    expected = [row.max().item() for row in (local(samples) * 2).softmax(1)]
    assert [answer[0] for answer in await factory.ask("toy", *samples.tolist())] == pytest.approx(expected)


@pytest.mark.asyncio(loop_scope="module")
async def test_a12_the_model_is_on_the_device_and_drops_nothing_out(factory: Factory) -> None:
    answers = await factory.ask("toy", *[[1.0, 2.0]] * 4)
    assert answers == [answers[0]] * 4
    assert factory.notes("toy")[-5] == "model 4 on cpu"


@pytest.mark.asyncio(loop_scope="module")
async def test_a13_samples_are_prepared_one_by_one_and_computed_together(factory: Factory) -> None:
    before = len(factory.notes("again"))
    answers = await factory.ask("again", [5.0, 0.0], [0.0, 5.0], [-5.0, -5.0], [6.0, 1.0])
    assert [name for _, _, name in answers] == ["cat", "dog", "cow", "cat"]
    assert factory.notes("again")[before:] == [*["preprocess"] * 4, "model 4 on cpu", *["postprocess"] * 4]
    before = len(factory.notes("again"))
    await factory.ask("again", [5.0, 0.0])
    assert factory.notes("again")[before:] == ["preprocess", "model 1 on cpu", "postprocess"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a15_a16_what_happens_at_load_happens_in_order_in_the_model_directory(factory: Factory) -> None:
    """The files that the shell commands made are imported and read, or nothing would have loaded."""
    assert factory.notes("toy")[:3] == [
        "install_packages",
        "unpack_dependencies, bundle there",
        "init_function 2 [3]",
    ]
    assert (factory.model_dir("toy") / "built" / "parts.py").is_file()
    assert (factory.model_dir("toy") / "names.txt").is_file()


@pytest.mark.asyncio(loop_scope="module")
async def test_a25_a26_a_plain_tar_is_unpacked_with_its_directories(factory: Factory) -> None:
    with tarfile.open(factory.model_dir("toy") / "test.tar.gz", "r:") as bundle:  # "r:" reads no compressed one
        assert "pkg/sub/layers.py" in bundle.getnames()
    assert (factory.model_dir("toy") / "pkg" / "sub" / "layers.py").read_text() == NETWORK


PICTURES = """
import numpy
import torch
from base_handler import handler_factory


def init_function(layers=18):
    assert layers == 18
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def preprocess(data):
    image = data.convert("RGB").resize((8, 8))
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 32


def postprocess(data):
    prediction = data.squeeze(0).softmax(0)
    class_id = prediction.argmax().item()
    score = prediction[class_id].item()
    return score, class_id, ["red", "green", "blue"][class_id]


handler = handler_factory(
    init_function=init_function, preprocess_function=preprocess, postprocess_function=postprocess, layers=18
)
"""


def test_a19_pictures_become_score_number_and_category(tmp_path: Path) -> None:
    (tmp_path / "pictures.py").write_text(PICTURES)
    shutil.copy(BASE / "base_handler.py", tmp_path)
    rows = []
    for colour in ("blue", "red", "lime", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (5, 7), colour).save(file, "PNG")
        rows.append({"data": bytearray(file.getvalue())})
    answers = run_handler("pictures.py", rows, model_dir=tmp_path)
    assert [answer[1:] for answer in answers] == [[2, "blue"], [0, "red"], [1, "green"], [2, "blue"]]
    assert all(0.9 < answer[0] < 1 for answer in answers)


# -- configuration ----------------------------------------------------------------------------------------------------


def test_a28_the_bound_on_gpu_memory_is_set_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU of 2000 MB that exists only here."""
    from ts import factory as module  # noqa: PLC0415  (its name is that of the fixture)

    events: list[object] = []

    class Model(torch.nn.Module):  # type: ignore[misc]
        def to(self, device: Any) -> Model:
            events.append(f"to {device}")
            return self

    monkeypatch.setattr(module, "choose_device", lambda gpu: ("cuda", torch.device(f"cuda:{gpu}")))
    monkeypatch.setattr(module, "prefer_fast_matmul", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2000 << 20))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: events.append((share, str(device)))
    )
    handler = module.handler_factory(Model, install_packages=lambda: events.append("install_packages"))()
    properties = {"model_dir": str(tmp_path), "gpu_id": 1}
    context = SimpleNamespace(
        system_properties=properties, manifest={}, model_yaml_config={"system": {"maxGPUMemory": 500}}
    )
    handler.initialize(context)
    assert events == [(0.25, "cuda:1"), "install_packages", "to cuda:1"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a29_a31_a32_the_describe_call_shows_the_configuration(factory: Factory) -> None:
    (described,) = await factory.server.models.describe("toy", None)
    assert {
        key: described[key] for key in ("minWorkers", "maxWorkers", "maxBatchDelay", "responseTimeout", "batchSize")
    } == {
        "minWorkers": 1,
        "maxWorkers": 1,
        "maxBatchDelay": 4000,
        "responseTimeout": 5200,
        "batchSize": 4,
    }
    assert "deviceIds" not in described  # there are no such devices here, so the list is ignored


SHOWS = """
def handle(data, context):
    shown = {"gpu": context.system_properties["gpu_id"], "system": context.model_yaml_config.get("system")}
    return data and [shown for _ in data]
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path / "tools"), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


async def devices_of(tmp_path: Path, config: str) -> list[str]:
    put_model(tmp_path / "store", "model", SHOWS, f"minWorkers: 2\nmaxWorkers: 2\n{config}")
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        await server.models.register("model")
        (described,) = await server.models.describe("model", None)
    return sorted(worker["gpuUsage"] for worker in described["workers"])


@pytest.mark.usefixtures("two_gpus")
async def test_a33_two_workers_get_two_gpus(tmp_path: Path) -> None:
    assert await devices_of(tmp_path, 'deviceType: "gpu"\n') == ["gpuId::0", "gpuId::1"]


async def test_a33_without_a_gpu_they_compute_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await devices_of(tmp_path, 'deviceType: "gpu"\n') == ["N/A", "N/A"]


@pytest.mark.usefixtures("two_gpus")
async def test_a34_workers_stay_on_the_devices_they_may_use(tmp_path: Path) -> None:
    assert await devices_of(tmp_path, 'deviceType: "gpu"\ndeviceIds: [1]\n') == ["gpuId::1", "gpuId::1"]


async def test_a35_sections_that_the_server_does_not_know_reach_the_handler(tmp_path: Path) -> None:
    put_model(tmp_path / "store", "model", SHOWS, 'system:\n  extraFiles: "test.tar.gz"\n  maxGPUMemory: 500\n')
    async with running_server(model_store=tmp_path / "store", temp_dir=tmp_path) as server:
        await server.models.register("model", RegisterOptions(initial_workers=1))
        (shown,) = await ask(server, "model", "x")
    assert shown["system"] == {"extraFiles": "test.tar.gz", "maxGPUMemory": 500}
