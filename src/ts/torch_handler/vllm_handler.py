"""VLLMHandler: language models on vLLM, asked the way that OpenAI's API is.

vLLM builds its own services for completions and chats; here is the way to them from a request, and back. Needs vLLM 0.8
or later when a model is loaded, not before.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import inspect
import json
import logging
import os
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

from ts.errors import PredictionException
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.importing import require
from ts.torch_handler.language_model import LanguageModelHandler

__all__ = ["VLLMHandler"]

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"  # the last event of a stream


class Route(NamedTuple):
    """One of OpenAI's routes: which service of vLLM answers it, and how it is asked."""

    service: str
    method: str
    request: str
    homes: tuple[str, ...]  # of the request's class, newest first


_OPENAI = "vllm.entrypoints.openai"
ROUTES = MappingProxyType(
    {
        "v1/completions": Route(
            "openai_serving_completion",
            "create_completion",
            "CompletionRequest",
            (f"{_OPENAI}.completion.protocol", f"{_OPENAI}.protocol"),
        ),
        "v1/chat/completions": Route(
            "openai_serving_chat",
            "create_chat_completion",
            "ChatCompletionRequest",
            (f"{_OPENAI}.chat_completion.protocol", f"{_OPENAI}.protocol"),
        ),
    }
)
_PARSER_HOMES = ("vllm.utils.argparse_utils", "vllm.utils")

# What vLLM raises when the request is at fault, and the status it answers with. By name: the classes have moved.
_REFUSALS = MappingProxyType(
    {
        "VLLMNotFoundError": 404,
        "NotImplementedError": 501,
        "TemplateError": 400,
        "ValueError": 400,
        "OverflowError": 400,
    }
)


class VLLMHandler(LanguageModelHandler):
    """Serves a language model under ``v1/completions``, ``v1/chat/completions`` and ``v1/models``.

    The section ``handler`` of the model configuration has ``model_path`` (in the archive, elsewhere, or on the Hugging
    Face Hub), and maybe ``vllm_engine_config`` (arguments of vLLM's engine, and of its server: what ``vllm serve``
    takes as flags), ``adapters`` (name to path of LoRA weights) and ``chat_template``.

    Attributes:
        vllm_engine: the engine.
        serving: vLLM's services, by the names that its own server gives them.
    """

    vllm_engine: Any = None
    serving: Any = None
    _requests: Mapping[str, Any] = MappingProxyType({})  # path to the class of its requests

    def initialize(self, context: Any) -> None:
        """Starts the engine and loads the model.

        Args:
            context: says where the archive is and how it is configured.

        Raises:
            AssertionError: the configuration names no model.
            ImportError: vLLM is not installed.
        """
        super().initialize(context)
        # Its processes must not be forked from one that has threads and maybe CUDA.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # The loop that requests will be answered on: the engine belongs to the one it was started on.
        asyncio.get_event_loop().run_until_complete(self._open(self.model_yaml_config.get("handler") or {}))
        self.initialized = True

    async def _open(self, section: Mapping[str, Any]) -> None:
        engine_args = self._get_vllm_engine_config(section)
        self.vllm_engine = _vllm("vllm").AsyncLLMEngine.from_engine_args(engine_args)
        self.serving = await _open_services(self.vllm_engine, self._serving_arguments(engine_args, section))
        self._requests = {path: _find(route.request, route.homes) for path, route in ROUTES.items()}

    def _get_vllm_engine_config(self, handler_config: Mapping[str, Any]) -> Any:
        """The arguments of the engine.

        Args:
            handler_config: the section ``handler`` of the model configuration.

        Raises:
            AssertionError: it names no model.
        """
        given = dict(handler_config.get("vllm_engine_config") or {})
        path = handler_config.get("model_path")
        model = given.pop("model", None) or (path and self._in_archive(path))
        if not model:
            raise AssertionError(
                "No model is configured: give model_path, or model in vllm_engine_config, in the section handler of "
                "the model configuration."
            )
        if handler_config.get("adapters"):
            given.setdefault("enable_lora", True)
        arguments = _vllm("vllm").AsyncEngineArgs
        names = {field.name for field in dataclasses.fields(arguments)}
        return arguments(model=model, **{name: value for name, value in given.items() if name in names})

    def _serving_arguments(self, engine_args: Any, section: Mapping[str, Any]) -> argparse.Namespace:
        """The arguments of vLLM's own server, which its services are made from."""
        adapters = section.get("adapters") or {}
        modules = [json.dumps({"name": name, "path": self._in_archive(path)}) for name, path in adapters.items()]
        parser = _vllm(f"{_OPENAI}.cli_args").make_arg_parser(_find("FlexibleArgumentParser", _PARSER_HOMES)())
        arguments: argparse.Namespace = parser.parse_args(["--lora-modules", *modules] if modules else [])
        known = vars(arguments)
        names = {field.name for field in dataclasses.fields(engine_args)}
        known.update({name: getattr(engine_args, name) for name in names if name in known})
        for name, value in (section.get("vllm_engine_config") or {}).items():
            if name in names:
                continue
            if name in known:
                known[name] = value
            else:
                logger.warning("vllm_engine_config has %s, which this release of vLLM does not know.", name)
        served = engine_args.served_model_name or engine_args.model
        known["served_model_name"] = [served] if isinstance(served, str) else list(served)
        if section.get("chat_template"):
            known["chat_template"] = self._in_archive(section["chat_template"])
        return arguments

    async def _answer_one(self, data: Any, context: Any) -> list[Any]:
        return await self.postprocess(await self.inference(await self.preprocess(data, context), context))

    async def preprocess(self, data: Any, context: Any) -> list[Any]:  # type: ignore[override]  # noqa: ARG002
        """The JSON object of the request.

        Args:
            data: a list with the request: its body as ``data`` or ``body``, decoded or not.
            context: the context of the request.

        Returns:
            A list with the object; an empty one for a request without a body.

        Raises:
            PredictionException: the body is no JSON object, or there is more than one request.
        """
        return [self._read_body(data)]

    async def inference(self, data: Any, context: Any) -> list[Any]:
        """Asks the service that the path of the request names.

        Args:
            data: a list with the JSON object of the request.
            context: the context of the request.

        Returns:
            A list with the answer in OpenAI's form, or with the last event of a stream.

        Raises:
            PredictionException: there is no such path.
            SystemExit: the engine has died, and this worker is of no more use.
        """
        path = (context.get_request_header(0, "url_path") or "").strip("/")
        if path == "v1/models":
            return [self._answer(await self.serving.openai_serving_models.show_available_models(), context)]
        route = ROUTES.get(path)
        if route is None:
            raise PredictionException(f"Unknown API endpoint: {path}", 404)
        service = getattr(self.serving, route.service, None)
        if service is None:
            raise PredictionException(f"The model does not generate text: {path} is not for it.", 400)
        try:
            request = self._requests[path].model_validate(data[0])
            answer = await getattr(service, route.method)(request)
        except Exception as error:
            self._end_if_dead()
            status = _refusal(error)
            if status is None:
                raise
            return [self._refuse(_explain(error), status, context)]
        if hasattr(answer, "__aiter__"):
            return [await self._stream(answer, context)]
        return [self._answer(answer, context)]

    def _answer(self, answer: Any, context: Any) -> dict[str, Any]:
        content: dict[str, Any] = answer.model_dump()
        status = _status_of(content)
        if status >= 500:
            self._end_if_dead()
        context.set_response_content_type(0, "application/json")
        if status != 200:
            context.set_response_status(status, idx=0)
        return content

    def _refuse(self, message: str, status: int, context: Any) -> dict[str, Any]:
        kind = {404: "NotFoundError", 501: "NotImplementedError"}.get(status, "BadRequestError")
        context.set_response_content_type(0, "application/json")
        context.set_response_status(status, idx=0)
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    async def _stream(self, events: Any, context: Any) -> str:
        context.set_response_content_type(0, "text/event-stream")
        async for event in events:
            if event == DONE:
                return DONE
            send_intermediate_predict_response([event], context.request_ids, "Result", 200, context)
        self._end_if_dead()
        return ""

    def _end_if_dead(self) -> None:
        if getattr(self.vllm_engine, "errored", False) is True:
            logger.critical("The vLLM engine has died; see above for its error. This worker ends with it.")
            raise SystemExit(1)


# -- vLLM ------------------------------------------------------------------------------------------------------------


def _vllm(module: str) -> Any:
    return require(module, "vllm", "vllm_handler needs")


def _find(name: str, homes: tuple[str, ...]) -> Any:
    """A class of vLLM, wherever this release has it."""
    newest, *older = homes
    try:
        return getattr(_vllm(newest), name)
    except (ImportError, AttributeError):
        if not older:
            raise
        return _find(name, tuple(older))


async def _open_services(engine: Any, arguments: argparse.Namespace) -> Any:
    """What vLLM's own server answers with. What it wants besides the engine and its arguments changes with releases."""
    init_app_state = _vllm(f"{_OPENAI}.api_server").init_app_state
    wanted = inspect.signature(init_app_state).parameters
    services = SimpleNamespace()
    given: dict[str, Any] = {"engine_client": engine, "state": services, "args": arguments}
    for name in ("model_config", "vllm_config", "supported_tasks"):
        if name in wanted:
            given[name] = await getattr(engine, f"get_{name}")()
    await init_app_state(**given)
    return services


def _status_of(answer: Mapping[str, Any]) -> int:
    """The status that an answer of vLLM stands for; errors come in two forms, an older one and that of OpenAI."""
    error = answer if answer.get("object") == "error" else answer.get("error")
    if not isinstance(error, Mapping):
        return 200
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def _refusal(error: Exception) -> int | None:
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((_REFUSALS[name] for name in names if name in _REFUSALS), None)


def _explain(error: Exception) -> str:
    """The error in a line or two; those of Pydantic field by field, without links and without the input."""
    details = getattr(error, "errors", None)
    if not callable(details):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}".removeprefix(": ") for detail in details())
