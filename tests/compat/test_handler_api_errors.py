"""What becomes of what a handler raises, while it answers and while it loads: items 9, 31-33 and 44 of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from handler_api import PYTHON, Model, Scene, serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PID = "import os; answer = [str(os.getpid())]"

# The error comes from three calls below what the worker calls.
NESTED = """
def read_weights(path):
    raise {error}

def build_model():
    return read_weights("weights.bin")

class Fails:
    def initialize(self, context):
        self.model = build_model()

    def handle(self, data, context):
        return []
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("errors"), {"python": Model(PYTHON)}) as scene:
        yield scene


# -- while answering -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        ("ValueError('a secret of the handler')", "ValueError: a secret of the handler"),
        ("AssertionError()", "AssertionError"),
        ("KeyError('weights')", "KeyError: 'weights'"),
        ("StopIteration()", "StopIteration"),
        ("GeneratorExit()", "GeneratorExit"),
    ],
)
async def test_31_an_exception_is_prediction_failed_and_the_worker_goes_on(
    scene: Scene, error: str, logged: str
) -> None:
    pid = (await scene.run(PID)).body
    since = len(scene.log.lines)
    answer = await scene.run(f"raise {error}")
    assert (answer.status, answer.json["type"]) == (503, "InternalServerException")
    assert (answer.json["code"], answer.json["message"]) == (503, "Prediction failed")
    assert answer.headers["content-type"] == "application/json"
    assert b"secret" not in answer.body
    await scene.log.wait_for("Invoking custom service failed.", since=since)
    await scene.log.wait_for(logged, since=since)
    assert (await scene.run(PID)).body == pid


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        ("MemoryError()", "System out of memory"),
        ("RuntimeError('CUDA out of memory')", "CUDA out of memory"),
        ("ValueError('CUDA error: device-side assert')", "CUDA out of memory"),
    ],
)
async def test_32_missing_memory_is_out_of_resources(scene: Scene, error: str, logged: str) -> None:
    pid = (await scene.run(PID)).body
    since = len(scene.log.lines)
    answer = await scene.run(f"raise {error}")
    assert (answer.status, answer.json["message"]) == (507, "Out of resources")
    await scene.log.wait_for(logged, since=since)
    assert (await scene.run(PID)).body == pid


@pytest.mark.parametrize("module", ["ts.utils.util", "ts.service"])
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("'x', 513", 513, "x"),
        ("'x'", 500, "x"),
        ("'x', 404", 404, "x"),
        ("'x', 413", 507, "x"),
        ("'x', 200", 500, "x"),
        ("{'label': 7}, '404'", 404, "{'label': 7}"),
        ("'x', None", 500, "x"),
        ("'größe', 422", 422, "größe"),
    ],
)
async def test_33_a_prediction_exception_chooses_status_and_message(
    scene: Scene, module: str, arguments: str, status: int, message: str
) -> None:
    pid = (await scene.run(PID)).body
    answer = await scene.run(f"from {module} import PredictionException\nraise PredictionException({arguments})")
    assert (answer.status, answer.json["code"], answer.json["message"]) == (status, status, message)
    assert (await scene.run(PID)).body == pid


async def test_33_a_prediction_exception_prints_both(scene: Scene) -> None:
    code = (
        "from ts.service import PredictionException as E; e = E('x', 513); answer = [[str(e), e.message, e.error_code]]"
    )
    assert (await scene.run(code)).json == ["x : 513", "x", 513]


async def test_a_handler_that_ends_the_process_answers_worker_died_and_the_next_request_is_served(scene: Scene) -> None:
    pid = (await scene.run(PID)).body
    answer = await scene.run("import sys; sys.exit(3)")
    assert (answer.status, answer.json["message"]) == (500, "Worker died.")
    assert (await scene.run(PID)).body != pid


# -- while loading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error", "status", "hint", "last_line"),
    [
        ("memory", "MemoryError()", 507, "System out of memory", "MemoryError"),
        (
            "cuda",
            "RuntimeError('CUDA out of memory')",
            507,
            "System out of memory",
            "RuntimeError: CUDA out of memory",
        ),
        ("runtime", "RuntimeError('no weights')", 500, "RuntimeError: no weights", "RuntimeError: no weights"),
        ("value", "ValueError('CUDA?')", 500, "ValueError: CUDA?", "ValueError: CUDA?"),
        ("file", "FileNotFoundError(path)", 500, "FileNotFoundError: weights.bin", "FileNotFoundError: weights.bin"),
        ("key", "KeyError('labels')", 500, "KeyError: 'labels'", "KeyError: 'labels'"),
        ("assertion", "AssertionError('no')", 500, "AssertionError: no", "AssertionError: no"),
        ("exit", "SystemExit(3)", 500, "SystemExit: 3", "SystemExit: 3"),
    ],
)
async def test_44_a_failing_load_is_explained_to_who_registers_and_in_the_log(
    scene: Scene, name: str, error: str, status: int, hint: str, last_line: str
) -> None:
    since = len(scene.log.lines)
    answer = await scene.register(f"fails_{name}", Model(NESTED.format(error=error)))
    assert (answer.status, answer.json["message"]) == (
        status,
        f"Failed to start workers for model fails_{name} version: 1.0",
    )
    assert answer.json["hint"] == hint
    for line in ("in initialize", "in build_model", "in read_weights", last_line, "Backend worker process died."):
        await scene.log.wait_for(line, since=since)
    assert (await scene.manage("GET", f"/models/fails_{name}")).status == 404


@pytest.mark.parametrize("handler", ["handler.py", "absent.py"])
async def test_44_the_explanation_names_no_directory_of_the_server(scene: Scene, handler: str) -> None:
    model = Model(NESTED.format(error="FileNotFoundError(__import__('os').path.abspath(path))"))
    name = f"names_{handler.removesuffix('.py')}"
    answer = await scene.register(name, model, f"&handler={handler}")
    expected = "FileNotFoundError: ./weights.bin" if handler == "handler.py" else "there is no absent.py in the archive"
    assert expected in answer.json["hint"]
    assert str(scene.store) not in answer.body.decode()


async def test_44_the_whole_traceback_is_in_the_log_of_every_attempt(scene: Scene) -> None:
    model = Model(NESTED.format(error="ValueError('no such layer')"))
    since = len(scene.log.lines)
    assert (await scene.register("keeps_failing", model, "&synchronous=false")).status == 202
    for line in ("in initialize", "in build_model", "in read_weights", "no such layer", "Backend worker process died."):
        await scene.log.wait_for(line, times=3, since=since)
    assert (await scene.manage("DELETE", "/models/keeps_failing")).status == 200
