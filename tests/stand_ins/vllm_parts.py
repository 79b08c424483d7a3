"""What both releases of the vLLM stand-in are made of: an engine that repeats the prompt backwards, word by word."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any


@dataclass
class AsyncEngineArgs:
    model: str = "default"
    served_model_name: Any = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    download_dir: str | None = None
    tensor_parallel_size: int = 1
    enable_lora: bool = False


class AsyncLLMEngine:
    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self.arguments = arguments
        self.errored = False

    @classmethod
    def from_engine_args(cls, arguments: AsyncEngineArgs) -> AsyncLLMEngine:
        return cls(arguments)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_model_config(self) -> str:
        return f"config of {self.arguments.model}"


class ArgumentParser(argparse.ArgumentParser):
    """vLLM's is one with more forms of flags."""


def make_arg_parser(parser: ArgumentParser) -> ArgumentParser:
    parser.add_argument("--lora-modules", nargs="+", type=json.loads)
    for flag in ("--model", "--served-model-name", "--chat-template", "--tool-call-parser", "--max-num-seqs"):
        parser.add_argument(flag)
    return parser


class ValidationError(ValueError):
    """As Pydantic's: long when printed, and with an account of each field."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"1 validation error\n{field}\n  Field required [type=missing, input_value={{...}}]\n  see https://"
        )
        self.field = field

    def errors(self) -> list[dict[str, Any]]:
        return [{"loc": ("body", self.field), "msg": "Field required", "type": "missing"}]


class NotFound(Exception):
    """What a current release raises for an unknown adapter."""


NotFound.__name__ = "VLLMNotFoundError"


class Answer:
    def __init__(self, **content: Any) -> None:
        self.content = content

    def model_dump(self) -> dict[str, Any]:
        return self.content


class _Request:
    needs: str

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def model_validate(cls, content: dict[str, Any]) -> Any:
        if cls.needs not in content:
            raise ValidationError(cls.needs)
        return cls(content)


class CompletionRequest(_Request):
    needs = "prompt"


class ChatCompletionRequest(_Request):
    needs = "messages"


class Models:
    def __init__(self, names: list[str], adapters: list[str]) -> None:
        self.names = names + adapters

    async def show_available_models(self) -> Answer:
        return Answer(object="list", data=[{"id": name} for name in self.names])


class Service:
    """Completions and chats alike; some prompts make it fail."""

    def __init__(self, engine: AsyncLLMEngine, models: Models, kind: str) -> None:
        self.engine, self.models, self.kind = engine, models, kind

    async def create_completion(self, request: CompletionRequest, raw_request: Any = None) -> Any:
        return self._create(request.content, request.content["prompt"])

    async def create_chat_completion(self, request: ChatCompletionRequest, raw_request: Any = None) -> Any:
        return self._create(request.content, request.content["messages"][-1]["content"])

    def _create(self, content: dict[str, Any], prompt: str) -> Any:
        if content.get("model") not in (None, *self.models.names):
            message = f"The model `{content['model']}` does not exist."
            return Answer(error={"message": message, "type": "NotFoundError", "param": "model", "code": 404})
        if prompt == "too long":
            return Answer(object="error", message="too long", type="BadRequestError", param=None, code=400)
        if prompt == "no value":
            raise ValueError("temperature must not be negative")
        if prompt == "no adapter":
            raise NotFound("no such adapter")
        if prompt == "defect":
            raise KeyError("defect")
        if prompt == "die":
            self.engine.errored = True
            raise RuntimeError("engine is dead")
        if prompt == "die late":
            self.engine.errored = True
            return Answer(
                error={"message": "engine is dead", "type": "InternalServerError", "param": None, "code": 500}
            )
        words = prompt.split()[::-1]
        if content.get("stream"):
            return self._stream(words, done=prompt != "break off")
        return Answer(object=self.kind, model=self.models.names[0], choices=[{"index": 0, "text": " ".join(words)}])

    async def _stream(self, words: list[str], *, done: bool) -> AsyncIterator[str]:
        for word in words:
            yield f"data: {json.dumps({'text': word})}\n\n"
        if done:
            yield "data: [DONE]\n\n"


def fill(engine: AsyncLLMEngine, state: Any, arguments: argparse.Namespace) -> None:
    adapters = [module["name"] for module in arguments.lora_modules or []]
    models = Models(arguments.served_model_name, adapters)
    state.arguments = arguments
    state.openai_serving_models = models
    state.openai_serving_chat = Service(engine, models, "chat.completion")
    state.openai_serving_completion = (
        None if engine.arguments.model == "embeds" else Service(engine, models, "text_completion")
    )
