"""The base classes of handlers before ``BaseHandler``; for handlers that still derive from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["ModelService", "SingleNodeService"]


class ModelService(ABC):
    """A handler whose answers come from :meth:`inference`.

    Args:
        model_name: name of the model; :meth:`initialize` sets it.
        model_dir: directory of the model; :meth:`initialize` sets it.
        manifest: manifest of the archive; :meth:`initialize` sets it.
        gpu: index of the GPU, None on CPU; :meth:`initialize` sets it.
    """

    def __init__(
        self,
        model_name: str | None = None,
        model_dir: str | None = None,
        manifest: dict[str, Any] | None = None,
        gpu: int | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_dir = model_dir
        self.manifest = manifest
        self.gpu = gpu
        self.context: Any = None

    def initialize(self, context: Any) -> None:
        """Keeps what the context says about the model; override it to load the model, and call it first.

        Args:
            context: the context of the worker.
        """
        properties = context.system_properties
        self.context = context
        self.model_name = context.model_name
        self.manifest = context.manifest
        self.model_dir = properties.get("model_dir")
        self.gpu = properties.get("gpu_id")

    @abstractmethod
    def inference(self, data: Any) -> Any:
        """The answers to a batch.

        Args:
            data: one element for each request.
        """

    def handle(self, data: Any, context: Any) -> Any:
        """Answers a batch with :meth:`inference`.

        Args:
            data: one element for each request.
            context: the context of the batch.
        """
        self.context = context
        return self.inference(data)


class SingleNodeService(ModelService):
    """A handler in three steps, each to be written by a subclass."""

    def inference(self, data: Any) -> Any:
        """The three steps in their order.

        Args:
            data: one element for each request.
        """
        return self._postprocess(self._inference(self._preprocess(data)))

    @abstractmethod
    def _preprocess(self, data: Any) -> Any:
        """What the model takes, from what the clients sent."""

    @abstractmethod
    def _inference(self, data: Any) -> Any:
        """What the model gives."""

    @abstractmethod
    def _postprocess(self, data: Any) -> Any:
        """What the clients get: a list with one element for each request."""
