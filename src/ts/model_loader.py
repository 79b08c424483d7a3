"""Loading a model inside a program of one's own, under the names that scripts import."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ts.loader import load_service
from ts.service import Service
from ts.wire import Load, Reply

__all__ = ["ModelLoader", "ModelLoaderFactory", "TsModelLoader"]

logger = logging.getLogger(__name__)


class ModelLoader(ABC):
    """Makes a service of the files of a model."""

    @abstractmethod
    def load(
        self,
        model_name: str,
        model_dir: str,
        handler: str,
        gpu_id: int | None,
        batch_size: int,
        envelope: str | None = None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> Service:
        """Loads a model.

        Args:
            model_name: a name for it.
            model_dir: directory of an unpacked archive.
            handler: ``file[:function or class]``, or the name of a built-in handler.
            gpu_id: index of the GPU, None on CPU.
            batch_size: how many requests a batch may have.
            envelope: name of the request envelope.
            limit_max_image_pixels: False lifts Pillow's limit on the size of an image.
            metrics_cache: takes the metrics that the handler emits once it is loaded; by default the log does.

        Returns:
            The service; its ``predict`` takes a :class:`ts.wire.Batch`.
        """


class TsModelLoader(ModelLoader):
    """Loads as a worker does, but for its current directory, which stays the caller's."""

    def load(
        self,
        model_name: str,
        model_dir: str,
        handler: str,
        gpu_id: int | None,
        batch_size: int,
        envelope: str | None = None,
        limit_max_image_pixels: bool = True,
        metrics_cache: Any = None,
    ) -> Service:
        """Loads a model, see :meth:`ModelLoader.load`.

        Raises:
            Exception: whatever the handler raises while it is imported, constructed or initialised.
            ImportError: there is no such handler or envelope.
            ValueError: the handler file, the manifest or the configuration is not as it must be.
        """
        directory = str(Path(model_dir).resolve())
        if directory not in sys.path:
            sys.path.insert(0, directory)
        service = load_service(
            Load(
                model_name,
                directory,
                handler,
                batch_size=batch_size or 1,
                gpu_id=gpu_id,
                envelope=envelope or "",
                limit_max_image_pixels=limit_max_image_pixels,
            ),
            _log_piece,
        )
        if metrics_cache is not None:
            service.context.metrics = metrics_cache
        return service


class ModelLoaderFactory:
    """Where scripts get a loader from."""

    @staticmethod
    def get_model_loader() -> ModelLoader:
        """The loader for every kind of handler."""
        return TsModelLoader()


def _log_piece(reply: Reply) -> None:
    logger.warning(
        "A piece of a streamed answer has nobody to go to: %d bytes for job %d.", len(reply.body), reply.job_id
    )
