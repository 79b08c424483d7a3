"""What handlers of language models have in common: they are asynchronous, and a call has one request, a JSON object."""

from __future__ import annotations

import json
import logging
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from ts.errors import PredictionException
from ts.torch_handler.base_handler import BaseHandler

__all__ = ["LanguageModelHandler"]

logger = logging.getLogger(__name__)


class LanguageModelHandler(BaseHandler):
    """Base of handlers around an engine that batches by itself: many requests run at a time, each alone in its call.

    The model configuration should say ``asyncCommunication: true`` and ``batchSize: 1``.

    Attributes:
        model_dir: directory of the archive.
    """

    model_dir: str = ""

    def initialize(self, context: Any) -> None:
        """Remembers where the archive is; the subclass starts the engine.

        Args:
            context: says where the archive is.
        """
        self.model_dir = context.system_properties["model_dir"]
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        if (context.system_properties.get("batch_size") or 1) > 1:
            logger.warning("%s takes one request at a time. Set batchSize to 1.", type(self).__name__)

    async def handle(self, data: Any, context: Any) -> list[Any]:
        """Answers one request.

        Args:
            data: a list with the request, a JSON object.
            context: the context of the request.

        Returns:
            A list with the answer, or with the last piece of a streamed one.

        Raises:
            PredictionException: the request cannot be answered.
        """
        started = time.perf_counter()
        if context.get_request_header(0, "describe") == "True":
            return [self.describe_handle()]
        answers = await self._answer_one(data, context)
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return answers

    @abstractmethod
    async def _answer_one(self, data: Any, context: Any) -> list[Any]:
        """Preprocess, inference, postprocess, with the arguments that subclasses of the handler know them by."""

    async def postprocess(self, data: Any) -> list[Any]:  # type: ignore[override]
        """The answer, as it is.

        Args:
            data: what the engine gave.
        """
        answers: list[Any] = data
        return answers

    def _read_body(self, data: Any) -> dict[str, Any]:
        """The JSON object of the request, decoded or not; an empty one for a request without a body.

        Raises:
            PredictionException: the body is no JSON object, or there is more than one request.
        """
        if len(data) != 1:
            raise PredictionException(f"{type(self).__name__} takes one request at a time: set batchSize to 1.", 500)
        body = data[0].get("data") or data[0].get("body") or {}
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            try:
                body = json.loads(body if isinstance(body, str) else bytes(body))
            except (ValueError, RecursionError) as error:
                raise PredictionException(f"The request body is not valid JSON: {error}.", 400) from None
        if not isinstance(body, dict):
            raise PredictionException("The request body must be a JSON object.", 400)
        return body

    def _in_archive(self, path: str) -> str:
        """A path of the archive if there is something, else what was given: another path, or a name on the Hub."""
        inside = Path(self.model_dir, path)
        return str(inside) if inside.exists() else path
