"""BaseHandler: loads a model and answers with preprocess, inference and postprocess; each can be replaced."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.profiler

from ts.handler_utils.timer import timed
from ts.labels import load_label_mapping
from ts.torch_handler import weights
from ts.torch_handler.compilation import IPEX_AVAILABLE, compile_model, compile_options, ipex, optimize_for_intel
from ts.torch_handler.device import XLA_AVAILABLE, choose_device, prepare_torch
from ts.torch_handler.weights import ONNX_AVAILABLE, Format, setup_ort_session

__all__ = [
    "IPEX_AVAILABLE",
    "ONNX_AVAILABLE",
    "PROFILER_AVAILABLE",
    "PT2_AVAILABLE",
    "PT230_AVAILABLE",
    "XLA_AVAILABLE",
    "BaseHandler",
    "ipex",
    "setup_ort_session",
]

logger = logging.getLogger(__name__)

# What handlers ask before they use a feature of torch; everything from 2.4 on has these.
PROFILER_AVAILABLE = find_spec("torch.profiler") is not None
PT2_AVAILABLE = hasattr(torch, "compile")
PT230_AVAILABLE = hasattr(torch, "export")

PROFILER_DIRECTORY = Path("/tmp/pytorch_profiler")  # noqa: S108  # where users and tools look for traces
PROFILER_OFF = ("", "0", "false", "no", "off")


def _evaluating(model: Any) -> Any:
    """The model without dropout and the like: who replaces a loader leaves that to us, or returns no module."""
    return model.eval() if isinstance(model, torch.nn.Module) else model


class BaseHandler(ABC):  # noqa: B024  # the public contract: a base class that is itself usable
    """Serves a model with a tensor in and a tensor out, and is the base of handlers for anything else.

    Attributes:
        model: the loaded model.
        mapping: class number as text to label, from ``index_to_name.json``; None without such a file.
        device: where the model is.
        context: the context of the running request.
        model_pt_path: path of the weights.
        manifest: the manifest of the archive.
        map_location: kind of device: ``cpu``, ``cuda``, ``xpu`` or ``mps``.
        initialized: the model is loaded.
        explain: an explanation was asked for.
        target: the class to explain, for handlers that want to keep it.
        profiler_args: arguments of ``torch.profiler.profile``; empty for the default ones.
        model_yaml_config: the model configuration.
    """

    # On the class, because many handlers do not call super().__init__().
    model: Any = None
    mapping: dict[str, str] | None = None
    device: Any = None
    context: Any = None
    model_pt_path: str | None = None
    manifest: dict[str, Any] | None = None
    map_location: str | None = None
    initialized: bool = False
    explain: bool = False
    target: Any = 0
    profiler_args: Mapping[str, Any] = MappingProxyType({})
    model_yaml_config: Mapping[str, Any] = MappingProxyType({})

    def __init__(self) -> None:
        self.profiler_args = {}

    # -- loading -----------------------------------------------------------------------------------------------------

    def initialize(self, context: Any) -> None:
        """Loads the model of an archive.

        Args:
            context: says where the archive is and which device to use.

        Raises:
            RuntimeError: the archive has no weights, or none that can be loaded.
            ValueError: the model file or the configuration is not as it must be.
        """
        properties = context.system_properties
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        prepare_torch(properties.get("gpu_id"))
        self.map_location, self.device = choose_device(properties.get("gpu_id"))
        self.manifest = context.manifest
        model_dir = properties["model_dir"]
        packed = (self.manifest or {}).get("model", {})
        serialized_file = packed.get("serializedFile")
        self.model_pt_path = os.path.join(model_dir, serialized_file) if serialized_file else None  # noqa: PTH118  # str
        self.model = self._load_model(model_dir, packed.get("modelFile"))
        options = compile_options(self.model_yaml_config)
        if options is not None:
            self.model = compile_model(self.model, options)
        elif IPEX_AVAILABLE and isinstance(self.model, torch.nn.Module):
            self.model = optimize_for_intel(self.model, self.device)
        self.mapping = load_label_mapping(Path(model_dir, "index_to_name.json"))
        self.initialized = True

    def _load_model(self, model_dir: str, model_file: str | None) -> Any:
        if model_file:
            model = self._load_pickled_model(model_dir, model_file, self.model_pt_path)
            model.to(self.device)
            model.eval()
            return model
        if self.model_pt_path is None:
            raise RuntimeError(
                "No model weights could be loaded: the archive has neither a model file nor a serialized file. "
                "Package one with --model-file or --serialized-file, or load the model in your handler's initialize()."
            )
        recognised = weights.recognise(self.model_pt_path)
        if recognised is Format.TORCHSCRIPT:
            return _evaluating(self._load_torchscript_model(self.model_pt_path))
        if recognised is Format.ONNX:
            self._make_device_current()
            return setup_ort_session(self.model_pt_path, self.map_location)
        if recognised is Format.EXPORTED:
            return weights.load_exported(self.model_pt_path, self.device, allow_pickle=self._allow_pickle())
        if recognised is Format.COMPILED:
            if self._use_torch_export_aot_compile():
                return self._load_torch_export_aot_compile(self.model_pt_path)
            raise RuntimeError(
                f"No model weights could be loaded: {Path(self.model_pt_path).name} is {recognised.value}, which runs "
                "machine code from the file. If you trust it, set `pt2: {export: {aot_compile: true}}` in the model's "
                "configuration file."
            )
        if recognised is Format.PICKLED and self._allow_pickle():
            model = weights.load_pickled(self.model_pt_path, self._weights_location(), allow_pickle=True)
            if isinstance(model, torch.nn.Module):
                return model.to(self.device).eval()
        raise RuntimeError(
            f"No model weights could be loaded: {Path(self.model_pt_path).name} is no TorchScript, and there is no "
            "model file that says what else to do with it. Package the model's class with it (--model-file)."
        )

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """A TorchScript model on the device of the worker.

        Args:
            model_pt_path: the file.

        Raises:
            RuntimeError: the file is no TorchScript.
        """
        return weights.load_torchscript(model_pt_path, self.device)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """A model that AOTInductor compiled, as a callable.

        Args:
            model_so_path: a package (``.pt2``) or a library (``.so``).

        Raises:
            RuntimeError: it cannot be loaded on this machine.
        """
        self._make_device_current()
        return weights.load_compiled(model_so_path, self.device)

    def _make_device_current(self) -> None:
        if self.map_location == "cuda":
            torch.cuda.set_device(self.device)

    def _use_torch_export_aot_compile(self) -> bool:
        """The model configuration says ``pt2: {export: {aot_compile: true}}``."""
        section = self.model_yaml_config.get("pt2")
        export = section.get("export") if isinstance(section, Mapping) else None
        return isinstance(export, Mapping) and bool(export.get("aot_compile"))

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """An eager model: the class of the model file with the weights of the archive.

        Args:
            model_dir: directory of the archive.
            model_file: name of the Python file with the class.
            model_pt_path: path of the weights; None for a model without.

        Raises:
            RuntimeError: there is no such model file, or the weights cannot be loaded safely.
            ValueError: the model file does not define exactly one class.
        """
        model = weights.build_model(Path(model_dir, model_file))
        if model_pt_path:
            allow_pickle = self._allow_pickle()
            model.load_state_dict(
                weights.load_state(model_pt_path, self._weights_location(), allow_pickle=allow_pickle)
            )
        return model

    def _allow_pickle(self) -> bool:
        section = self.model_yaml_config.get("handler")
        return isinstance(section, Mapping) and section.get("allow_pickle") is True

    def _weights_location(self) -> Any:
        # Tensors cannot be loaded onto an XLA device; the model is moved there afterwards.
        return None if XLA_AVAILABLE and self.map_location is None else self.device

    # -- answering ---------------------------------------------------------------------------------------------------

    @timed
    def preprocess(self, data: Any) -> Any:
        """What the model takes, from what the clients sent.

        Args:
            data: one element for each request.

        Returns:
            A tensor.
        """
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model gives.

        Args:
            data: a tensor.
            args: handed to the model.
            kwargs: handed to the model.
        """
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """What the clients get, from what the model gave.

        Args:
            data: a tensor with one element for each request.

        Returns:
            A list with one element for each request.
        """
        answers: list[Any] = data.tolist()
        return answers

    def handle(self, data: Any, context: Any) -> Any:
        """Answers a batch.

        Args:
            data: one element for each request.
            context: the context of the batch.

        Returns:
            A list with one element for each request.
        """
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER", "").strip().lower() not in PROFILER_OFF:
            output, _ = self._infer_with_profiler(data)
        else:
            prepared = self.preprocess(data)
            if self._is_explain():
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        metrics = context.metrics
        if metrics is not None:
            metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """Answers a batch under the profiler, which leaves a trace file.

        Args:
            data: one element for each request.

        Returns:
            The answers and the profiler.
        """
        if self.manifest is None:
            self.manifest = getattr(self.context, "manifest", None)
        arguments = dict(self.profiler_args)
        if not arguments:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            arguments = {"activities": activities, "record_shapes": True}
        if "on_trace_ready" not in arguments:
            directory = PROFILER_DIRECTORY / ((self.manifest or {}).get("model", {}).get("modelName") or "")
            arguments["on_trace_ready"] = torch.profiler.tensorboard_trace_handler(str(directory))
            logger.info("The profiler writes its trace to %s", directory)
        section = torch.profiler.record_function
        with torch.profiler.profile(**arguments) as profile:
            with section("preprocess"):
                prepared = self.preprocess(data)
            if self._is_explain():
                with section("explain"):
                    output = self.explain_handle(prepared, data)
            else:
                with section("inference"):
                    result = self.inference(prepared)
                with section("postprocess"):
                    output = self.postprocess(result)
        logger.info("%s", profile.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        return output, profile

    # -- explaining, describing --------------------------------------------------------------------------------------

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Explains the first request with the handler's own ``get_insights``.

        Args:
            data_preprocess: what :meth:`preprocess` made of the batch.
            raw_data: what the clients sent.

        Returns:
            What ``get_insights`` returned: a list with one element for each request.

        Raises:
            NotImplementedError: the handler cannot explain.
        """
        get_insights = getattr(self, "get_insights", None)
        if get_insights is None:
            raise NotImplementedError(
                f"{type(self).__name__} cannot explain: it has no method get_insights(tensor_data, inputs, target)."
            )
        inputs, target = None, 0
        if isinstance(raw_data[0], dict):
            row = raw_data[0]
            inputs = row.get("data") or row.get("body")
            target = _class_number(row.get("target") or 0)
        return get_insights(data_preprocess, inputs, target)

    def _is_explain(self) -> bool:
        if self._header("explain") != "True":
            return False
        self.explain = True
        return True

    def _is_describe(self) -> bool:
        return bool(self._header("describe") == "True")

    def _header(self, name: str) -> Any:
        return self.context.get_request_header(0, name) if self.context is not None else None

    def describe_handle(self) -> Any:
        """What ``GET /models/{name}?customized=true`` shows besides the usual; for handlers to replace."""
        return None

    def get_device(self) -> Any:
        """Where the model is."""
        return self.device


def _class_number(target: Any) -> Any:
    """The target of an explanation; form fields bring it as bytes."""
    if isinstance(target, (bytes, bytearray)):
        target = bytes(target).decode()
    if isinstance(target, str) and target.strip().isdecimal():
        return int(target)
    return target
