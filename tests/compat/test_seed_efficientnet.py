"""A TorchScript image classifier, started and reloaded by a script of 2020: its page, requirement by requirement.

===  ===============================================================================================================
D1   ``test_d1_…`` here; with the real network ``docs/test_example_pages.py``
D2   a checkpoint with a model file: ``docs/test_digits_example.py``, ``docs/test_first_model_tutorial.py``
D3   ``handler.py`` of ``examples/efficientnet``, which everything here runs
D4   ``test_d4_d5_…``
D5   ``test_d4_d5_…``
D6   ``test_d6_…``
D7   ``test_d7_…``; an exception instead of a status: ``integration/test_isolation.py``
D8   ``test_d8_…``
D9   ``test_d9_…``
D10  ``test_d10_…``
D11  ``test_d11_…``
D12  ``test_d12_…``
D13  ``integration/test_builtin_handlers.py``; ``unit/ts/torch_handler/test_image_classifier.py`` and its neighbours
D14  eight threads: ``test_d6_…``; endurance: ``integration/test_serving.py``, twenty thousand requests
===  ===============================================================================================================

The page waits three seconds after the start; nothing here does: ``--start`` returns when the management calls answer.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio
import torch

from mariner.jobs import Part, Request, pack_headers
from mariner.model_settings import RegisterOptions
from mariner.serve import Server
from mariner.testing import running_server
from terminal import Answer, Terminal

pytestmark = [pytest.mark.slow, pytest.mark.torch]

EXAMPLE = Path(__file__).parents[2] / "examples" / "efficientnet"
PACKAGE = """
torch-model-archiver --model-name b4 --version 1.0 \
    --serialized-file cache/b4.pt --handler handler.py \
    --export-path model-store
"""
SCRIPT = """
set +e
torchserve --start --model-store model-store --ts-config config.properties > /dev/null
echo "started: $?"
curl -s -w 'deleted: %{http_code}\\n' -X DELETE http://localhost:8081/models/b4
curl -s -w 'registered: %{http_code}\\n' -X POST "http://localhost:8081/models?\
model_name=b4&url=b4.mar&batch_size=4&max_batch_delay=1000&initial_workers=1&synchronous=true"
"""


class Probe(torch.nn.Module):  # type: ignore[misc]
    """Stands for a network of six classes; its answer tells how many rows it saw and what was on them.

    Class 0 gets ``rows`` shares for each share of the classes that get nothing else, and ``favourite`` gets more the
    brighter the left half of the image is.
    """

    def __init__(self, favourite: int) -> None:
        super().__init__()
        self.favourite = favourite

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(images.size(0), 6)
        logits[:, 0] = torch.log(torch.tensor(float(images.size(0))))
        logits[:, self.favourite] = images[:, :, :, : images.size(3) // 2].mean(dim=[1, 2, 3]) * 12.0
        return logits


def save_program(folder: Path, favourite: int) -> None:
    (folder / "cache").mkdir(exist_ok=True)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Probe(favourite)).save(str(folder / "cache" / "b4.pt"))


def half_bright(side: str, level: int) -> bytes:
    """An image as clients of the page post it, bright on one side."""
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array[:, slice(0, 4) if side == "left" else slice(4, 8)] = level
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def rows_seen(shares: list[float]) -> float:
    """How many rows the program had when it gave this answer: class 0 against a class that gets nothing."""
    return shares[0] / shares[5]


# -- the script -------------------------------------------------------------------------------------------------------


class Observed(NamedTuple):
    """What happened while the page was followed."""

    first: str
    described: dict[str, Any]
    pid: str
    answers: list[Answer]
    started_again: str
    second: str
    pid_afterwards: str
    reloaded: Answer
    stopped: str
    log: str
    entries: list[str]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with Terminal(tmp_path_factory.mktemp("efficientnet")) as terminal:
        folder = terminal.folder
        shutil.copy(EXAMPLE / "handler.py", folder)
        (folder / "config.properties").write_text((EXAMPLE / "config.properties").read_text() + terminal.addresses)
        (folder / "model-store").mkdir()
        yield follow(terminal)


def follow(terminal: Terminal) -> Observed:
    folder, pid_file = terminal.folder, terminal.folder / "tmp" / ".model_server.pid"
    save_program(folder, favourite=2)
    terminal.run(PACKAGE)
    first = terminal.run(SCRIPT)
    (described,) = terminal.ask("GET", "/models/b4", port="8081").json
    pid = pid_file.read_text()
    bodies = [half_bright("left", 200 if number % 2 else 20) for number in range(64)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: terminal.ask("POST", "/predictions/b4", body), bodies))
    started_again = terminal.run("torchserve --start --model-store model-store || echo refused: $?")
    save_program(folder, favourite=4)
    terminal.run(PACKAGE.rstrip() + " --force")
    second = terminal.run(SCRIPT)
    reloaded = terminal.ask("POST", "/predictions/b4", bodies[1])
    pid_afterwards = pid_file.read_text()
    stopped = terminal.run("torchserve --stop; curl -s http://localhost:8080/ping || echo gone")
    # The page sends the server's output away; what it warns about is seen by starting it once more.
    log = terminal.run("torchserve --start --model-store model-store --ts-config config.properties; torchserve --stop")
    entries = sorted(path.name for path in (folder / "model-store").iterdir())
    return Observed(
        first, described, pid, answers, started_again, second, pid_afterwards, reloaded, stopped, log, entries
    )


def test_d1_one_program_and_one_handler_make_an_archive_that_serves(page: Observed) -> None:
    assert page.entries == ["b4.mar"]
    assert page.answers[0].status == 200


def test_d8_management_answers_as_soon_as_start_has_returned(page: Observed) -> None:
    assert page.first.startswith("started: 0\n")


def test_d9_an_unknown_model_cannot_be_deleted_and_the_script_goes_on(page: Observed) -> None:
    assert "deleted: 404" in page.first
    assert 'Model \\"b4\\" Version: 1.0 registered with 1 initial workers' in page.first
    assert page.first.endswith("registered: 200\n")
    shown = {key: page.described[key] for key in ("batchSize", "maxBatchDelay", "minWorkers", "modelUrl")}
    assert shown == {"batchSize": 4, "maxBatchDelay": 1000, "minWorkers": 1, "modelUrl": "b4.mar"}
    assert [worker["status"] for worker in page.described["workers"]] == ["READY"]


def test_d10_the_script_run_again_reloads_the_archive(page: Observed) -> None:
    assert "already running" in page.started_again
    assert page.started_again.endswith("refused: 1\n")
    assert "deleted: 200" in page.second
    assert page.second.endswith("registered: 200\n")
    assert page.pid_afterwards == page.pid
    before, after = page.answers[1].json, page.reloaded.json
    assert (int(np.argmax(before)), int(np.argmax(after))) == (2, 4)


def test_d11_keys_for_a_java_server_are_accepted_and_named(page: Observed) -> None:
    assert "async_logging" in page.log
    assert "vmargs" in page.log
    assert "Model server started." in page.log


def test_d12_stop_ends_the_server(page: Observed) -> None:
    assert page.stopped.endswith("TorchServe has stopped.\ngone\n")


def test_d6_each_of_eight_threads_gets_the_answers_for_its_images(page: Observed) -> None:
    assert {answer.status for answer in page.answers} == {200}
    assert [int(np.argmax(answer.json)) for answer in page.answers] == [0, 2] * 32


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    terminal = Terminal(tmp_path_factory.mktemp("batches"))
    shutil.copy(EXAMPLE / "handler.py", terminal.folder)
    save_program(terminal.folder, favourite=2)
    terminal.run(PACKAGE)
    async with running_server(model_store=terminal.folder / "model-store", temp_dir=terminal.folder) as server:
        await server.models.register("b4.mar", RegisterOptions(batch_size=4, max_batch_delay=1.0, initial_workers=1))
        yield server


async def ask(server: Server, *bodies: bytes) -> list[tuple[int, bytes]]:
    """Requests that arrive together, so that they are one batch."""
    requests = [Request(str(number), pack_headers([]), [Part("body", "", body)]) for number, body in enumerate(bodies)]
    replies = await asyncio.gather(*(server.models.predict("b4", None, request) for request in requests))
    return [(reply.status, bytes(reply.body)) for reply in replies]


@pytest.mark.asyncio(loop_scope="module")
async def test_d4_d5_an_array_posted_without_a_content_type_is_answered_with_six_shares(server: Server) -> None:
    ((status, body),) = await ask(server, half_bright("left", 100))
    shares = json.loads(body)
    assert status == 200
    assert len(shares) == 6
    assert sum(shares) == pytest.approx(1)


@pytest.mark.asyncio(loop_scope="module")
async def test_d6_four_requests_are_eight_rows_and_one_is_two(server: Server) -> None:
    together = await ask(server, *(half_bright("left", 10) for _ in range(4)))
    alone = await ask(server, half_bright("left", 10))
    assert [round(rows_seen(json.loads(body))) for _, body in [*together, *alone]] == [8, 8, 8, 8, 2]


@pytest.mark.asyncio(loop_scope="module")
async def test_d6_an_image_and_its_mirror_image_have_the_same_answer(server: Server) -> None:
    left, right = await ask(server, half_bright("left", 90), half_bright("right", 90))
    assert json.loads(left[1]) == pytest.approx(json.loads(right[1]), abs=1e-6)


@pytest.mark.asyncio(loop_scope="module")
async def test_d7_one_malformed_item_of_four_is_refused_alone(server: Server) -> None:
    answers = await ask(server, half_bright("left", 9), b"no array", half_bright("left", 9), half_bright("left", 9))
    assert [status for status, _ in answers] == [200, 400, 200, 200]
    assert answers[1][1].startswith(b"Send an image as NumPy writes it")
    assert round(rows_seen(json.loads(answers[0][1]))) == 6
