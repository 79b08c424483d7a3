"""VLLMHandler around a stand-in for vLLM, through the service that a worker runs it in."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ts.context import Context
from ts.service import Service
from ts.testing import run_handler
from ts.torch_handler.vllm_handler import VLLMHandler
from ts.wire import Batch, Part, Reply, Request, pack_headers, unpack_headers

pytestmark = pytest.mark.torch

RELEASES = ["vllm_current", "vllm_0_8"]
HELLO = {"model": "tiny", "prompt": "how are you"}
CHAT = {"messages": [{"role": "user", "content": "how are you"}]}


class Metrics:
    def set_request_ids(self, ids: Any) -> None:
        """Takes them."""

    def add_time(self, name: str, value: float, idx: int | None = None, unit: str = "ms") -> None:
        """Takes it."""


class Reached(NamedTuple):
    """What a client gets."""

    status: int
    content_type: str
    pieces: list[str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Model:
    def __init__(
        self,
        directory: Path,
        section: dict[str, Any] | None,
        batch_size: int = 1,
        handler: VLLMHandler | None = None,
    ) -> None:
        config = {} if section is None else {"handler": section}
        context = Context(
            "tiny", str(directory), {}, batch_size, None, "0", metrics=Metrics(), model_yaml_config=config
        )
        self.handler = handler or VLLMHandler()
        self.sent: list[Reply] = []
        self.service = Service(context, self.handler.handle, self.sent.append)
        try:
            self.service.load(self.handler.initialize)
        except BaseException:
            self.service.close()
            raise

    def ask(self, path: str, *bodies: Any, **headers: str) -> Reached:
        packed = pack_headers([("url_path", path), *headers.items()])
        jobs = [
            (index, Request(f"id-{index}", packed, [self._part(body)])) for index, body in enumerate(bodies or [b""])
        ]
        self.sent.clear()
        (last, *_) = self.service.predict(Batch(1, jobs))
        first = self.sent[0] if self.sent else last
        kind = dict(unpack_headers(first.headers)).get("content-type", "")
        return Reached(
            first.status, kind, [bytes(piece.body).decode() for piece in self.sent], bytes(last.body).decode()
        )

    @staticmethod
    def _part(body: Any) -> Part:
        return (
            Part("body", "", body)
            if isinstance(body, bytes)
            else Part("body", "application/json", json.dumps(body).encode())
        )


@pytest.fixture
def load(
    put_stand_in: Callable[[str], None], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Model]]:
    loaded: list[Model] = []
    put_stand_in(getattr(request, "param", "vllm_current"))

    def make(batch_size: int = 1, **section: Any) -> Model:
        loaded.append(Model(tmp_path, section or {"model_path": "tiny"}, batch_size))
        return loaded[-1]

    yield make
    for model in loaded:
        model.service.close()


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", RELEASES, indirect=True)
def test_a_completion_and_a_chat_are_answered_in_the_form_of_openai(load: Callable[..., Model]) -> None:
    model = load()
    completed = model.ask("v1/completions", HELLO)
    assert (completed.status, completed.content_type) == (200, "application/json")
    assert completed.json["choices"] == [{"index": 0, "text": "you are how"}]
    assert model.ask("v1/chat/completions", CHAT).json["object"] == "chat.completion"


@pytest.mark.parametrize("load", RELEASES, indirect=True)
def test_a_stream_is_sent_event_by_event_and_ends_with_done(load: Callable[..., Model]) -> None:
    streamed = load().ask("v1/chat/completions", {**CHAT, "stream": True})
    assert (streamed.status, streamed.content_type) == (200, "text/event-stream")
    assert streamed.pieces == [f'data: {{"text": "{word}"}}\n\n' for word in ("you", "are", "how")]
    assert streamed.body == "data: [DONE]\n\n"


def test_a_stream_that_breaks_off_ends_without_done(load: Callable[..., Model]) -> None:
    streamed = load().ask("v1/completions", {"prompt": "break off", "stream": True})
    assert len(streamed.pieces) == 2
    assert streamed.body == ""


def test_bodies_without_a_content_type_are_json_too(load: Callable[..., Model]) -> None:
    assert load().ask("v1/completions", json.dumps(HELLO).encode()).json["choices"][0]["text"] == "you are how"


def test_the_models_are_listed(load: Callable[..., Model]) -> None:
    model = load(
        model_path="base", adapters={"poems": "poems-lora"}, vllm_engine_config={"served_model_name": ["a", "b"]}
    )
    assert [row["id"] for row in model.ask("v1/models").json["data"]] == ["a", "b", "poems"]


@pytest.mark.parametrize("path", ["", "v1/embeddings", "v1/completions/more"])
def test_an_unknown_path_is_not_found(load: Callable[..., Model], path: str) -> None:
    answer = load().ask(path, HELLO)
    assert (answer.status, answer.body) == (404, f"Unknown API endpoint: {path}")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "tiny"}, 400, "body.prompt: Field required"),
        ({"model": "other", "prompt": "a"}, 404, "The model `other` does not exist."),
        ({"prompt": "no value"}, 400, "temperature must not be negative"),
        ({"prompt": "no adapter"}, 404, "no such adapter"),
    ],
)
def test_an_error_of_the_client_has_its_status_and_the_form_of_openai(
    load: Callable[..., Model], body: Any, status: int, message: str
) -> None:
    answer = load().ask("v1/completions", body)
    assert (answer.status, answer.content_type) == (status, "application/json")
    assert (answer.json["error"]["code"], answer.json["error"]["message"]) == (status, message)


def test_an_error_in_the_older_form_has_its_status_too(load: Callable[..., Model]) -> None:
    answer = load().ask("v1/completions", {"prompt": "too long"})
    assert (answer.status, answer.json["message"]) == (400, "too long")


@pytest.mark.parametrize("body", [b"{oops", b"\xff", [1], "text"])
def test_what_is_no_json_object_is_refused(load: Callable[..., Model], body: Any) -> None:
    answer = load().ask("v1/completions", body)
    assert answer.status == 400
    assert answer.body.startswith("The request body")


def test_a_defect_is_not_the_fault_of_the_client(load: Callable[..., Model]) -> None:
    answer = load().ask("v1/completions", {"prompt": "defect"})
    assert (answer.status, answer.body) == (503, "Prediction failed")


@pytest.mark.parametrize("prompt", ["die", "die late"])
def test_the_worker_ends_with_its_engine(load: Callable[..., Model], prompt: str) -> None:
    model = load()
    with pytest.raises(SystemExit):
        model.ask("v1/completions", {"prompt": prompt})


def test_a_batch_is_refused_with_the_advice(load: Callable[..., Model], caplog: pytest.LogCaptureFixture) -> None:
    model = load(batch_size=4)
    assert "Set batchSize to 1" in caplog.text
    answer = model.ask("v1/completions", HELLO, HELLO)
    assert (answer.status, answer.body) == (500, "VLLMHandler takes one request at a time: set batchSize to 1.")


def test_a_model_that_does_not_generate_says_so(load: Callable[..., Model]) -> None:
    answer = load(model_path="embeds").ask("v1/completions", HELLO)
    assert (answer.status, answer.body) == (400, "The model does not generate text: v1/completions is not for it.")


def test_the_handler_describes_itself_without_the_engine(load: Callable[..., Model]) -> None:
    assert load().ask("", describe="True").body == "null"


# -- loading ---------------------------------------------------------------------------------------------------------


def engine_arguments(model: Model) -> Any:
    return model.handler.vllm_engine.arguments


def test_a_model_of_the_archive_comes_before_one_of_the_hub(load: Callable[..., Model], tmp_path: Path) -> None:
    assert engine_arguments(load(model_path="weights")).model == "weights"
    (tmp_path / "weights").mkdir()
    assert engine_arguments(load(model_path="weights")).model == str(tmp_path / "weights")


def test_the_model_of_the_engine_config_wins(load: Callable[..., Model]) -> None:
    model = load(model_path="one", vllm_engine_config={"model": "two", "max_num_seqs": 7})
    assert (engine_arguments(model).model, engine_arguments(model).max_num_seqs) == ("two", 7)
    assert model.ask("v1/models").json["data"] == [{"id": "two"}]


def test_a_model_must_be_named(put_stand_in: Callable[[str], None], tmp_path: Path) -> None:
    put_stand_in("vllm_current")
    with pytest.raises(AssertionError, match="No model is configured: give model_path"):
        Model(tmp_path, None)


def test_flags_of_the_server_reach_it_and_unknown_ones_are_named(
    load: Callable[..., Model], caplog: pytest.LogCaptureFixture
) -> None:
    config = {"tool_call_parser": "hermes", "max_num_seqs": 3, "max_num_sequences": 9}
    model = load(model_path="tiny", chat_template="{{ messages }}", vllm_engine_config=config)
    arguments = model.handler.serving.arguments
    assert (arguments.tool_call_parser, arguments.max_num_seqs) == ("hermes", 3)
    assert arguments.chat_template == "{{ messages }}"
    assert "max_num_sequences, which this release of vLLM does not know" in caplog.text


def test_adapters_are_found_in_the_archive_and_switch_lora_on(load: Callable[..., Model], tmp_path: Path) -> None:
    (tmp_path / "poems").mkdir()
    model = load(model_path="tiny", adapters={"poems": "poems"})
    assert model.handler.serving.arguments.lora_modules == [{"name": "poems", "path": str(tmp_path / "poems")}]
    assert engine_arguments(model).enable_lora


def test_each_release_is_told_what_it_wants(put_stand_in: Callable[[str], None], tmp_path: Path) -> None:
    for release, told in zip(
        RELEASES, [{"supported_tasks": ("generate",)}, {"model_config": "config of tiny"}], strict=True
    ):
        put_stand_in(release)
        model = Model(tmp_path, {"model_path": "tiny"})
        assert model.handler.serving.told == told
        model.service.close()


def test_its_processes_are_spawned(load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    load()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_without_vllm_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vllm_handler needs a package that is missing: pip install vllm"):
        Model(tmp_path, {"model_path": "tiny"})


def test_a_subclass_that_replaces_a_step_as_it_was_in_torchserve_is_served(
    put_stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    class Polite(VLLMHandler):
        async def preprocess(self, requests: Any, context: Any) -> list[Any]:
            (request,) = await super().preprocess(requests, context)
            return [{**request, "prompt": f"{request['prompt']} please"}]

        async def postprocess(self, inference_outputs: Any) -> list[Any]:
            return [output["choices"] for output in inference_outputs]

    put_stand_in("vllm_current")
    model = Model(tmp_path, {"model_path": "tiny"}, handler=Polite())
    answer = model.ask("v1/completions", HELLO)
    model.service.close()
    assert answer.json == [{"index": 0, "text": "please you are how"}]


def test_a_language_model_answers_without_a_server(put_stand_in: Callable[[str], None], tmp_path: Path) -> None:
    put_stand_in("vllm_current")
    config = {"handler": {"model_path": "tiny"}}
    headers = [{"url_path": "v1/completions"}]
    (answer,) = run_handler("vllm_handler", [{"body": HELLO}], model_dir=tmp_path, config=config, headers=headers)
    assert answer["choices"][0]["text"] == "you are how"
