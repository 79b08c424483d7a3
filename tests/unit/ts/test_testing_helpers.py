from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ts.context import Context
from ts.metrics.legacy import MetricsStore
from ts.testing import MockContext, run_handler

HANDLER = """
import helper_of_handler

class Handler:
    def initialize(self, context):
        self.name = context.manifest["model"].get("modelName")
        self.factor = context.model_yaml_config.get("factor", 1)

    def handle(self, data, context):
        return [helper_of_handler.double(len(row["body"])) * self.factor for row in data]
"""


MODEL = """
import torch

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1, bias=False)
"""


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "handler_under_test.py").write_text(HANDLER)
    (tmp_path / "helper_of_handler.py").write_text("def double(value): return 2 * value\n")
    return tmp_path


class Echo:
    def initialize(self, context: Context) -> None:
        self.greeting = context.model_yaml_config.get("greeting", "hello")

    def handle(self, data: Any, context: Context) -> Any:
        context.set_response_status(201, idx=0)
        return [f"{self.greeting} {context.get_request_header(index, 'who')}" for index in range(len(data))]


def test_a_handler_file_answers_a_batch(model_dir: Path) -> None:
    assert run_handler("handler_under_test.py", [b"abc", {"body": "d"}], model_dir=model_dir) == [6, 2]


def test_what_was_imported_from_the_directory_is_forgotten(model_dir: Path) -> None:
    before, path = Path.cwd(), list(sys.path)
    run_handler("handler_under_test", [b"abc"], model_dir=model_dir)
    assert "handler_under_test" not in sys.modules
    assert "helper_of_handler" not in sys.modules
    assert (Path.cwd(), sys.path) == (before, path)


def test_the_manifest_and_the_configuration_it_names_are_read(model_dir: Path) -> None:
    (model_dir / "MAR-INF").mkdir()
    manifest = {"model": {"modelName": "long", "configFile": "model.yaml"}}
    (model_dir / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (model_dir / "model.yaml").write_text("factor: 10\n")
    assert run_handler("handler_under_test.py", [b"abc"], model_dir=model_dir) == [60]


def test_a_configuration_given_wins(model_dir: Path) -> None:
    assert run_handler("handler_under_test.py", [b"a"], model_dir=model_dir, config={"factor": 7}) == [14]


@pytest.mark.parametrize("handler", [Echo, Echo()], ids=["class", "instance"])
def test_a_class_or_an_instance_answers_with_its_headers(handler: Any, tmp_path: Path) -> None:
    answers = run_handler(handler, [b"", b""], model_dir=tmp_path, headers=[{"who": "Ada"}, {"Who": "Bob"}])
    assert answers == ["hello Ada", "hello Bob"]


def test_a_context_of_ones_own_shows_the_statuses(tmp_path: Path) -> None:
    context = MockContext()
    run_handler(Echo, [b"", b""], model_dir=tmp_path, context=context)
    assert [context.get_response_status(index)[0] for index in range(2)] == [201, 200]


def test_a_function_is_called_once_to_load(tmp_path: Path) -> None:
    calls = []

    def handle(data: Any, context: Context) -> Any:
        calls.append(data)
        return data

    assert run_handler(handle, [{"x": 1}], model_dir=tmp_path) == [{"x": 1}]
    assert calls == [None, [{"x": 1}]]


def test_an_asynchronous_handler_is_waited_for(tmp_path: Path) -> None:
    async def handle(data: Any, context: Context) -> Any:
        return data and [len(data)]

    assert run_handler(handle, [b""], model_dir=tmp_path) == [1]


def test_an_asynchronous_handler_loads_on_the_loop_that_it_answers_on(tmp_path: Path) -> None:
    class Handler:
        def initialize(self, context: Any) -> None:
            self.loop = asyncio.get_event_loop()

        async def handle(self, data: Any, context: Any) -> Any:
            return [asyncio.get_running_loop() is self.loop]

    assert run_handler(Handler, ["a"], model_dir=tmp_path) == [True]


def test_what_a_handler_raises_is_raised(tmp_path: Path) -> None:
    def handle(data: Any, context: Context) -> Any:
        if data:
            raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        run_handler(handle, [b""], model_dir=tmp_path)


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [("text", TypeError, "returned str"), ([1, 2], ValueError, "2 answers for 1 requests")],
)
def test_an_answer_that_fits_no_batch_is_an_error(
    tmp_path: Path, answers: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_handler(lambda data, context: answers, [b""], model_dir=tmp_path)


def test_headers_of_another_number_of_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are 1 requests, but headers for 2"):
        run_handler(Echo, [b""], model_dir=tmp_path, headers=[{}, {}])


def test_what_is_no_handler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="int is no handler"):
        run_handler(7, [b""], model_dir=tmp_path)


def test_a_mock_context_has_what_handlers_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("handler: {profile: true}\n")
    context = MockContext("weights.pt", tmp_path, "net.py", model_name="tiny", model_yaml_config_file="config.yaml")
    assert context.manifest == {
        "model": {"modelName": "tiny", "serializedFile": "weights.pt", "modelFile": "net.py"},
    }
    assert context.system_properties["model_dir"] == str(tmp_path)
    assert context.model_yaml_config == {"handler": {"profile": True}}
    assert isinstance(context.metrics, MetricsStore)
    assert context.get_request_header(0, "explain") is None


def test_a_mock_context_without_files_names_none() -> None:
    assert MockContext(None, model_file=None).manifest == {"model": {"modelName": "mnist"}}


def test_a_mock_context_explains_when_told() -> None:
    context = MockContext()
    context.explain = True
    assert context.get_request_header(0, "explain") == "True"


@pytest.mark.torch
def test_a_mock_context_drives_a_built_in_handler(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415  # only this test needs it

    torch.save({"weight": torch.tensor([[2.0]])}, tmp_path / "model.pt")
    (tmp_path / "net_of_mock.py").write_text(MODEL)
    context = MockContext(model_dir=tmp_path, model_file="net_of_mock.py")
    assert run_handler("base_handler", [[3.0]], model_dir=tmp_path, context=context) == [[6.0]]
    assert [metric.name for metric in context.metrics.store] == ["HandlerTime"]
