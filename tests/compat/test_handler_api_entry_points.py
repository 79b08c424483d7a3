"""What may be a handler, and how it is found and called: items 1-3, 5-10 and 52 of the handler contract."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from handler_api import PYTHON, Model, Scene, serving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

FUNCTION = """
from ts.context import Context

calls = []

def handle(data, context):
    calls.append(["load" if data is None else type(data).__name__, isinstance(context, Context)])
    return [calls] if data else None
"""

FUNCTION_BESIDE_CLASS = """
class Net:
    def initialize(self, context): pass
    def handle(self, data, context): return ["class" for _ in data]

def serve(data, context):
    return data and ["function" for _ in data]
"""

CLASS = """
class Plain:
    loads = 0
    batches = 0

    def initialize(self, context):
        self.loads += 1
        self.batches_before = self.batches

    def handle(self, data, context):
        self.batches += 1
        return [[self.loads, self.batches_before, self.batches] for _ in data]
"""

MICRO_BATCHING = """
from ts.handler_utils.micro_batching import MicroBatching

class Sliced:
    def __init__(self): self.handle = MicroBatching(self)
    def initialize(self, context): pass
    def preprocess(self, data): return [row["body"] for row in data]
    def inference(self, texts): return [text.upper() for text in texts]
    def postprocess(self, texts): return [text + "!" for text in texts]
"""

FACTORY = """
def make(answer):
    class Made:
        def initialize(self, context): pass
        def handle(self, data, context): return [answer for _ in data]
    return Made
"""
MADE = """
from factory import make

Predictor = make("made")
Predictor.__module__ = __name__
"""

IMPORTED = """
from factory import make
Other = make("imported")

class Mine(Other):
    def handle(self, data, context): return ["mine" for _ in data]
"""

TWO_CLASSES = """
class Tokenizer:
    pass

class Mine:
    def initialize(self, context): pass
    def handle(self, data, context): return ["mine" for _ in data]
"""

ONE_CLASS = """
class Mine:
    def initialize(self, context): pass
    def handle(self, data, context): return ["class" for _ in data]
"""

COROUTINE_METHOD = """
import asyncio

class Waits:
    def initialize(self, context):
        self.word = asyncio.get_event_loop().run_until_complete(self.fetch())

    async def fetch(self):
        await asyncio.sleep(0)
        return "fetched"

    async def handle(self, data, context):
        return [await self.fetch() + " as " + self.word for _ in data]
"""

COROUTINE_FUNCTION = """
loaded = []

async def handle(data, context):
    if data is None:
        loaded.append("loaded")
    return data and loaded
"""

WORD = 'def handle(data, context):\n    return data and ["a file of the archive" for _ in data]\n'

MODELS = {
    "function": Model(FUNCTION),
    "named": Model(FUNCTION_BESIDE_CLASS, manifest={"handler": "handler.py:serve"}),
    "class": Model(CLASS),
    "sliced": Model(MICRO_BATCHING),
    "made": Model(MADE, files={"factory.py": FACTORY}),
    "imported": Model(IMPORTED, files={"factory.py": FACTORY}),
    "two": Model(TWO_CLASSES),
    "missing": Model(ONE_CLASS, manifest={"handler": "handler.py:missing"}),
    "builtin_name": Model(files={"base_handler.py": WORD}, manifest={"handler": "base_handler"}),
    "python3": Model(PYTHON, runtime="python3"),
    "async_method": Model(COROUTINE_METHOD, "asyncCommunication: true\n"),
    "async_function": Model(COROUTINE_FUNCTION, "asyncCommunication: true\n"),
    "async_in_turn": Model(COROUTINE_METHOD),
    "sync_function": Model(WORD, "asyncCommunication: true\n"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with serving(tmp_path_factory.mktemp("entry_points"), MODELS) as scene:
        yield scene


async def word(scene: Scene, model: str) -> str:
    answer = await scene.ask("POST", f"/predictions/{model}", "x", Content_Type="text/plain")
    assert answer.status == 200, answer
    return answer.body.decode()


async def test_1_a_function_is_called_without_data_to_load_and_then_with_lists(scene: Scene) -> None:
    for batches in (1, 2):
        answer = await scene.ask("POST", "/predictions/function", "x")
        assert answer.json == [["load", True], *[["list", True]] * batches]


async def test_2_a_function_may_be_named_and_wins_over_a_class(scene: Scene) -> None:
    assert await word(scene, "named") == "function"


async def test_3_a_class_needs_no_base_and_is_initialised_once_before_its_first_batch(scene: Scene) -> None:
    for batches in (1, 2):
        assert (await scene.ask("POST", "/predictions/class", "x")).json == [1, 0, batches]


async def test_5_micro_batching_that_init_assigns_to_handle_is_the_entry_point(scene: Scene) -> None:
    assert await word(scene, "sliced") == "X!"


async def test_6_a_class_whose_module_was_assigned_is_the_handler(scene: Scene) -> None:
    assert await word(scene, "made") == "made"


async def test_7_imported_classes_do_not_count(scene: Scene) -> None:
    assert await word(scene, "imported") == "mine"


async def test_7_of_two_classes_the_one_with_handle_is_the_handler(scene: Scene) -> None:
    assert await word(scene, "two") == "mine"


async def test_7_a_file_without_function_or_class_is_refused_and_the_log_says_why(scene: Scene) -> None:
    answer = await scene.register("none", Model("VALUE = 1\n"))
    assert answer.status == 500
    assert "Expected only one class in custom service code or a function entry point" in answer.json["hint"]
    await scene.log.wait_for("Expected only one class in custom service code or a function entry point")


async def test_8_a_function_that_is_missing_leaves_the_class(scene: Scene) -> None:
    assert await word(scene, "missing") == "class"


async def test_8_a_function_that_is_missing_without_a_class_is_refused(scene: Scene) -> None:
    answer = await scene.register("lost", Model("VALUE = 1\n", manifest={"handler": "handler.py:missing"}))
    assert (answer.status, answer.json["message"]) == (500, "Failed to start workers for model lost version: 1.0")


async def test_9_a_package_that_the_handler_lacks_is_named(scene: Scene) -> None:
    files = {"beside.py": "import package_nobody_has\n"}
    answer = await scene.register("lacking", Model(f"import beside\n{PYTHON}", files=files))
    assert (answer.status, answer.json["hint"]) == (500, "ModuleNotFoundError: No module named 'package_nobody_has'")
    await scene.log.wait_for("ModuleNotFoundError: No module named 'package_nobody_has'")
    assert scene.log.count("ts.torch_handler.handler") == 0


async def test_10_a_file_wins_over_the_builtin_handler_of_its_name(scene: Scene) -> None:
    assert await word(scene, "builtin_name") == "a file of the archive"


async def test_the_runtime_python3_is_the_interpreter_of_the_server(scene: Scene) -> None:
    assert (await scene.run("import sys; answer = [sys.executable]", "python3")).body.decode() == sys.executable


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("async_method", "fetched as fetched"),
        ("async_function", "loaded"),
        ("async_in_turn", "fetched as fetched"),  # without asyncCommunication coroutines run one after the other
        ("sync_function", "a file of the archive"),  # with it an ordinary function will do
    ],
)
async def test_52_a_handler_may_be_a_coroutine_and_initialize_may_use_its_loop(
    scene: Scene, model: str, expected: str
) -> None:
    assert await word(scene, model) == expected
