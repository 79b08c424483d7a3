"""DenseNetHandler: tensors in, tensors out, both as ``torch.save`` writes them."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Mapping
from typing import Any

import torch

from ts.errors import PredictionException
from ts.importing import list_classes_from_module
from ts.torch_handler import weights
from ts.torch_handler.device import choose_device

__all__ = ["DenseNetHandler", "list_classes_from_module"]

_ZIP = b"PK\x03\x04"


class DenseNetHandler:
    """Runs a model on tensors; no subclass of BaseHandler.

    Attributes:
        model: the loaded model.
        device: where the model is.
        initialized: the model is loaded.
        context: the context of the running request.
        manifest: the manifest of the archive.
        map_location: kind of device: ``cpu``, ``cuda``, ``xpu`` or ``mps``.
    """

    def __init__(self) -> None:
        self.model: Any = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.manifest: dict[str, Any] | None = None
        self.map_location: str | None = None

    def initialize(self, context: Any) -> None:
        """Loads the model of an archive.

        Args:
            context: says where the archive is and which device to use.

        Raises:
            KeyError: the archive has no serialized file.
            RuntimeError: the weights or the model file are missing, or the weights cannot be loaded safely.
            ValueError: the model file does not define exactly one class.
        """
        self.context = context
        self.map_location, self.device = choose_device(context.system_properties.get("gpu_id"))
        self.manifest = context.manifest
        model_dir = context.system_properties["model_dir"]
        packed = (self.manifest or {"model": {}})["model"]
        model_pt_path = os.path.join(model_dir, packed["serializedFile"])  # noqa: PTH118  # handlers get text
        if not os.path.isfile(model_pt_path):  # noqa: PTH113  # the same
            raise RuntimeError(f"Missing the model.pt file: {packed['serializedFile']} is not in the archive.")
        if packed.get("modelFile"):
            self.model = self._load_pickled_model(model_dir, packed["modelFile"], model_pt_path)
        else:
            self.model = self._load_torchscript_model(model_pt_path)
        self.model.to(self.device)
        self.model.eval()
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return weights.load_torchscript(model_pt_path, self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str) -> Any:
        model = weights.build_model(os.path.join(model_dir, model_file))  # noqa: PTH118  # as above
        section = (getattr(self.context, "model_yaml_config", None) or {}).get("handler")
        allow_pickle = isinstance(section, Mapping) and section.get("allow_pickle") is True
        model.load_state_dict(weights.load_state(model_pt_path, self.device, allow_pickle=allow_pickle))
        return model

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model gives.

        Args:
            data: a tensor with one element for each request.
            args: handed to the model.
            kwargs: handed to the model.
        """
        with torch.no_grad():
            return self.model(data.to(self.device), *args, **kwargs)

    def handle(self, data: Any, context: Any) -> list[Any]:
        """Answers a batch.

        Args:
            data: for each request its tensor as ``data`` or ``body``.
            context: the context of the batch.

        Returns:
            For each request what the model gave for it, as a batch of one; all in one if that is no tensor.

        Raises:
            PredictionException: a request is no tensor.
        """
        started = time.perf_counter()
        self.context = context
        tensors = [_read_tensor(row.get("data") or row.get("body")) for row in data]
        output = self.inference(torch.stack(tensors))
        if context.metrics is not None:
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        if not isinstance(output, torch.Tensor) or len(tensors) == 1:
            return [output]
        # A copy of each, because saving a part of a tensor saves all of it: the answers to the other requests too.
        return [part.clone() for part in output.split(1)]


def _read_tensor(body: Any) -> Any:
    """The tensor in a request body; nothing in the body can run code."""
    # Only the zip format: in the older ones, releases of torch before 2.6 let a body run code even so.
    if not isinstance(body, (bytes, bytearray, memoryview)) or bytes(body[:4]) != _ZIP:
        raise PredictionException("The body must be a tensor as torch.save writes it.", 400)
    try:
        tensor = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise PredictionException("The body is no tensor that can be loaded safely.", 400) from error
    if not isinstance(tensor, torch.Tensor):
        raise PredictionException(f"The body must be a tensor, not a {type(tensor).__name__}.", 400)
    return tensor
