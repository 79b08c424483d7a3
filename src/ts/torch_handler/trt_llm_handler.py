"""TRTLLMHandler: language models on TensorRT-LLM. Needs it, and Transformers, when a model is loaded, not before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ts.errors import PredictionException
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.importing import require
from ts.torch_handler.language_model import LanguageModelHandler

__all__ = ["TRTLLMHandler"]


class TRTLLMHandler(LanguageModelHandler):
    """Generates text for ``{"prompt": …, "streaming": false, …}``; the rest of the object are sampling parameters.

    The section ``handler`` of the model configuration has ``engine_dir`` (an engine, or a checkpoint that TensorRT-LLM
    loads by itself), and maybe ``tokenizer_dir``, ``kv_cache_config``, ``trt_llm_engine_config`` (further arguments of
    ``tensorrt_llm.LLM``) and ``trust_remote_code: true``, which lets a tokenizer run code of its own.

    Attributes:
        trt_llm_engine: the engine.
        tokenizer: the tokenizer.
    """

    trt_llm_engine: Any = None
    tokenizer: Any = None

    def initialize(self, context: Any) -> None:
        """Starts the engine and loads the model.

        Args:
            context: says where the archive is and how it is configured.

        Raises:
            ImportError: TensorRT-LLM or Transformers is not installed.
            ValueError: the configuration names no ``engine_dir``.
        """
        super().initialize(context)
        section = self.model_yaml_config.get("handler") or {}
        if not section.get("engine_dir"):
            raise ValueError(
                "No model is configured: give engine_dir in the section handler of the model configuration."
            )
        engine_dir = self._in_archive(section["engine_dir"])
        settings = _tensorrt("tensorrt_llm.llmapi").KvCacheConfig(**(section.get("kv_cache_config") or {}))
        self.tokenizer = _load_tokenizer(
            self._in_archive(section.get("tokenizer_dir") or engine_dir),
            trust_remote_code=section.get("trust_remote_code") is True,
        )
        self.trt_llm_engine = _engine_class(engine_dir)(
            model=engine_dir,
            tokenizer=self.tokenizer,
            kv_cache_config=settings,
            **(section.get("trt_llm_engine_config") or {}),
        )
        self.initialized = True

    async def _answer_one(self, data: Any, context: Any) -> list[Any]:
        return await self.postprocess(await self.inference(await self.preprocess(data), context))

    async def preprocess(self, data: Any) -> dict[str, Any]:
        """The JSON object of the request.

        Args:
            data: a list with the request: its body as ``data`` or ``body``, decoded or not.

        Raises:
            PredictionException: the body is no JSON object, or there is more than one request.
        """
        return self._read_body(data)

    async def inference(self, data: Any, context: Any) -> list[Any]:
        """Generates the text.

        Args:
            data: the JSON object of the request.
            context: the context of the request.

        Returns:
            A list with the text; with ``streaming`` an empty one, after pieces ``{"text": …}``.

        Raises:
            PredictionException: there is no prompt, or a sampling parameter is wrong.
        """
        parameters = dict(data)
        prompt = parameters.pop("prompt", None)
        streaming = bool(parameters.pop("streaming", False))
        if not isinstance(prompt, str):
            raise PredictionException('The request body must have a text "prompt".', 400)
        generated = self.trt_llm_engine.generate_async(
            prompt, sampling_params=self._sampling(parameters), streaming=streaming
        )
        if not streaming:
            return [(await generated).outputs[0].text]
        shown = 0
        async for output in generated:
            text = output.outputs[0].text
            if len(text) > shown:  # a token may be half of a character
                piece = json.dumps({"text": text[shown:]})
                send_intermediate_predict_response([piece], context.request_ids, "Result", 200, context)
                shown = len(text)
        return [""]

    def _sampling(self, parameters: dict[str, Any]) -> Any:
        if "max_new_tokens" in parameters:  # as it was called in the first releases
            parameters.setdefault("max_tokens", parameters.pop("max_new_tokens"))
        tokens = {"end_id": self.tokenizer.eos_token_id, "pad_id": self.tokenizer.pad_token_id}
        try:
            return _tensorrt("tensorrt_llm").SamplingParams(**{**tokens, **parameters})
        except (TypeError, ValueError) as error:
            raise PredictionException(f"A sampling parameter is wrong: {error}", 400) from error


def _tensorrt(module: str) -> Any:
    return require(module, "tensorrt_llm", "trt_llm_handler needs")


def _engine_class(engine_dir: str) -> Any:
    """The class that loads the model: engines that were built ahead have one of their own since release 1.0."""
    config = Path(engine_dir, "config.json")
    if config.is_file() and "build_config" in json.loads(config.read_bytes()):
        try:
            return _tensorrt("tensorrt_llm._tensorrt_engine").LLM
        except ImportError:
            pass  # an older release, with one class for all
    return _tensorrt("tensorrt_llm").LLM


def _load_tokenizer(directory: str, *, trust_remote_code: bool) -> Any:
    auto = require("transformers", "transformers", "trt_llm_handler needs").AutoTokenizer
    tokenizer = auto.from_pretrained(
        directory, padding_side="left", truncation_side="left", use_fast=True, trust_remote_code=trust_remote_code
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer
