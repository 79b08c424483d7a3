"""TRTLLMHandler around a stand-in for TensorRT-LLM, through the service that a worker runs it in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ts.context import Context
from ts.service import Service
from ts.torch_handler.trt_llm_handler import TRTLLMHandler
from ts.wire import Batch, Part, Reply, Request

pytestmark = pytest.mark.torch


class Metrics:
    def set_request_ids(self, ids: Any) -> None:
        """Takes them."""

    def add_time(self, name: str, value: float, idx: int | None = None, unit: str = "ms") -> None:
        """Takes it."""


class Model:
    def __init__(self, directory: Path, section: dict[str, Any], handler: TRTLLMHandler | None = None) -> None:
        context = Context(
            "tiny", str(directory), {}, 1, None, "0", metrics=Metrics(), model_yaml_config={"handler": section}
        )
        self.handler = handler or TRTLLMHandler()
        self.sent: list[Reply] = []
        self.service = Service(context, self.handler.handle, self.sent.append)
        try:
            self.service.load(self.handler.initialize)
        except BaseException:
            self.service.close()
            raise

    def ask(self, **body: Any) -> tuple[int, list[str], str]:
        """Status, pieces and the end of an answer."""
        part = Part("body", "application/json", json.dumps(body).encode())
        self.sent.clear()
        (last,) = self.service.predict(Batch(1, [(0, Request("id-0", b"", [part]))]))
        return last.status, [bytes(piece.body).decode() for piece in self.sent], bytes(last.body).decode()


@pytest.fixture
def load(put_stand_in: Callable[[str], None], tmp_path: Path) -> Iterator[Callable[..., Model]]:
    loaded: list[Model] = []
    put_stand_in("tensorrt_llm_1")

    def make(**section: Any) -> Model:
        loaded.append(Model(tmp_path, section or {"engine_dir": "engine"}))
        return loaded[-1]

    yield make
    for model in loaded:
        model.service.close()


def test_a_prompt_is_answered_with_the_text(load: Callable[..., Model]) -> None:
    assert load().ask(prompt="how are you") == (200, [], "you are how")


def test_a_streamed_answer_comes_as_json_texts_and_ends_empty(load: Callable[..., Model]) -> None:
    status, pieces, end = load().ask(prompt="how are you", streaming=True)
    assert status == 200
    assert [json.loads(piece) for piece in pieces] == [{"text": "you"}, {"text": " are"}, {"text": " how"}]
    assert end == ""


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
def test_the_other_members_are_sampling_parameters(load: Callable[..., Model], name: str) -> None:
    assert load().ask(prompt="how are you", temperature=0.5, **{name: 2}) == (200, [], "you are")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, 'The request body must have a text "prompt".'),
        ({"prompt": ["a"]}, 'The request body must have a text "prompt".'),
        ({"prompt": "a", "temperature": -1}, "A sampling parameter is wrong: temperature must not be negative"),
    ],
)
def test_a_wrong_request_is_the_fault_of_the_client(load: Callable[..., Model], body: Any, message: str) -> None:
    assert load().ask(**body) == (400, [], message)


def test_an_unknown_parameter_is_named(load: Callable[..., Model]) -> None:
    status, _, message = load().ask(prompt="a", heat=1)
    assert status == 400
    assert "heat" in message


def test_the_engine_gets_what_the_configuration_says(load: Callable[..., Model]) -> None:
    model = load(
        engine_dir="meta/model",
        tokenizer_dir="meta/words",
        kv_cache_config={"free_gpu_memory_fraction": 0.1},
        trt_llm_engine_config={"dtype": "bfloat16"},
    )
    engine = model.handler.trt_llm_engine
    assert engine.kind == "loads checkpoints"
    assert (engine.arguments["model"], engine.arguments["dtype"]) == ("meta/model", "bfloat16")
    assert engine.arguments["kv_cache_config"].free_gpu_memory_fraction == 0.1
    tokenizer = engine.arguments["tokenizer"]
    assert (tokenizer.directory, tokenizer.pad_token_id) == ("meta/words", tokenizer.eos_token_id)


def test_a_tokenizer_runs_no_code_of_its_own_unless_it_is_trusted(load: Callable[..., Model]) -> None:
    assert load(engine_dir="m").handler.tokenizer.options["trust_remote_code"] is False
    assert load(engine_dir="m", trust_remote_code=True).handler.tokenizer.options["trust_remote_code"] is True


def test_an_engine_that_was_built_ahead_is_found_in_the_archive(load: Callable[..., Model], tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "config.json").write_text('{"build_config": {}, "pretrained_config": {}}')
    engine = load(engine_dir="engine").handler.trt_llm_engine
    assert (engine.kind, engine.arguments["model"]) == ("loads engines", str(tmp_path / "engine"))


def test_an_older_release_has_one_class_for_all(
    load: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"build_config": {}}')
    monkeypatch.setitem(sys.modules, "tensorrt_llm._tensorrt_engine", None)
    assert load(engine_dir=".").handler.trt_llm_engine.kind == "loads checkpoints"


def test_an_engine_must_be_named(put_stand_in: Callable[[str], None], tmp_path: Path) -> None:
    put_stand_in("tensorrt_llm_1")
    with pytest.raises(ValueError, match="give engine_dir"):
        Model(tmp_path, {})


def test_without_tensorrt_llm_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(ImportError, match="trt_llm_handler needs a package that is missing: pip install tensorrt_llm"):
        Model(tmp_path, {"engine_dir": "engine"})


def test_a_subclass_that_replaces_a_step_as_it_was_in_torchserve_is_served(
    put_stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    class Polite(TRTLLMHandler):
        async def preprocess(self, requests: Any) -> dict[str, Any]:
            request = await super().preprocess(requests)
            return {**request, "prompt": f"{request['prompt']} please"}

        async def postprocess(self, outputs: Any) -> list[Any]:  # type: ignore[override]
            return [{"said": output} for output in outputs]

    put_stand_in("tensorrt_llm_1")
    model = Model(tmp_path, {"engine_dir": "engine"}, Polite())
    status, _, body = model.ask(prompt="a b")
    model.service.close()
    assert (status, json.loads(body)) == (200, {"said": "please b a"})
