"""From an unpacked archive to a :class:`~ts.service.Service`: manifest, configuration, handler, envelope."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ts.context import Context
from ts.importing import defined_classes, import_path, list_classes_from_module
from ts.page import Page
from ts.service import Service
from ts.version import __version__

if TYPE_CHECKING:
    from ts.wire import Load, Reply, Sample

__all__ = ["BUILTINS", "EntryPoint", "enter_model_dir", "find_handler", "load_service", "wrap_in_envelope"]

logger = logging.getLogger(__name__)

# Handlers that need no file in the archive; a file of the same name wins.
BUILTINS = MappingProxyType(
    {
        name: f"ts.torch_handler.{name}"
        for name in (
            "base_handler",
            "dali_handler",
            "dali_image_classifier",
            "densenet_handler",
            "image_classifier",
            "image_segmenter",
            "object_detector",
            "text_classifier",
            "text_handler",
            "trt_llm_handler",
            "vision_handler",
            "vllm_handler",
        )
    }
)

_ENVELOPES = "ts.torch_handler.request_envelope"
_ENVELOPE_ALIASES = MappingProxyType({"kfserving": "kserve", "kfservingv2": "kservev2"})


class EntryPoint(NamedTuple):
    """How a handler is called.

    Attributes:
        handle: with the data of a batch and the context.
        initialize: once, with the context.
    """

    handle: Callable[[Any, Context], Any]
    initialize: Callable[[Context], Any]


def load_service(
    load: Load,
    send: Callable[[Reply], None],
    *,
    bodies: memoryview | None = None,
    page: Page | None = None,
    sink: Callable[[Sample], None] | None = None,
) -> Service:
    """Loads the model of this process; the process must already be in the model's directory.

    Args:
        load: what to load.
        send: takes the pieces of streamed answers.
        bodies: shared memory that holds large bodies.
        page: says which jobs nobody wants any more.
        sink: takes the metrics that the handler emits.

    Returns:
        The service, its handler initialised.

    Raises:
        Exception: whatever the handler raises while it is imported, constructed or initialised.
        ImportError: there is no such handler or envelope.
        ValueError: the handler file, the manifest or the configuration is not as it must be.
    """
    model_dir = Path(load.model_dir).resolve()
    manifest = _read_manifest(model_dir)
    context = Context(
        load.model_name,
        str(model_dir),
        manifest,
        load.batch_size,
        load.gpu_id,
        __version__,
        load.limit_max_image_pixels,
        _open_metrics(load, sink),
        _read_config(model_dir, manifest),
    )
    handle, initialize = find_handler(load.handler, model_dir, manifest)
    service = Service(
        context,
        wrap_in_envelope(handle, load.envelope),
        send,
        bodies=bodies,
        page=page,
        decode_input_request=load.decode_input_request,
        max_response_size=load.max_response_size,
        isolate_errors=load.isolate_batch_errors,
        emits_time=load.every_metric,
    )
    if load.async_communication:
        service.open_loop()  # before anything of the model can ask for one
    device = sys.modules.get("ts.torch_handler.device")
    if device is not None:  # the handler uses BaseHandler, and may load its model without it
        device.prepare_torch(load.gpu_id)
    service.load(initialize)
    if load.shared_weights and load.gpu_id is None:
        _share_weights(load.shared_weights, handle, initialize)
    return service


def _share_weights(place: str, *entry_points: Callable[..., Any]) -> None:
    if "torch" not in sys.modules:
        logger.warning("sharedWeights: the handler does not use PyTorch; nothing is shared.")
        return
    sharing = importlib.import_module("ts.torch_handler.shared_weights")
    sharing.share_weights(sharing.find_modules(*entry_points), Path(place))


def enter_model_dir(load: Load) -> None:
    """Makes the model's directory the current one and the first place to import from, for child processes too."""
    # Relative entries mean what they meant where the process started, so they are resolved before it moves.
    sys.path[:], os.environ["PYTHONPATH"] = import_path(
        sys.path, inherited=os.environ.get("PYTHONPATH", ""), model_dir=load.model_dir, handler=load.handler
    )
    os.chdir(load.model_dir)
    importlib.invalidate_caches()


# -- files of the archive --------------------------------------------------------------------------------------------


def _read_manifest(model_dir: Path) -> dict[str, Any] | None:
    path = model_dir / "MAR-INF" / "MANIFEST.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Package the model again.") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} must hold a JSON object. Package the model again.")  # noqa: TRY004  # not a defect
    return manifest


def _model_entry(manifest: Mapping[str, Any] | None, key: str) -> str:
    model = (manifest or {}).get("model")
    return str(model.get(key) or "") if isinstance(model, dict) else ""


def _read_config(model_dir: Path, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    name = _model_entry(manifest, "configFile")
    if not name:
        return {}
    import yaml  # noqa: PLC0415  # environments of models without a configuration may lack it

    path = model_dir / name
    config = yaml.safe_load(path.read_bytes())
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values.")  # noqa: TRY004  # not a defect
    return config


# -- metrics ---------------------------------------------------------------------------------------------------------


class _NoMetrics:
    """Stands in for the metrics where they cannot be imported: handlers emit, and nothing happens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ignore


def _ignore(*_: Any, **__: Any) -> None:
    """Takes a metric nobody can use."""


def _open_metrics(load: Load, sink: Callable[[Sample], None] | None) -> Any:
    try:
        # They need yaml, which a worker can do without.
        from ts.metrics.errors import NoModelMetrics  # noqa: PLC0415
        from ts.metrics.store import MetricsCacheYamlImpl  # noqa: PLC0415

        metrics = MetricsCacheYamlImpl(load.metrics_config or None)
        try:
            metrics.initialize_cache()
        except NoModelMetrics as error:  # a file may be about the server's metrics alone
            logger.warning("No metrics of models are declared: %s", error)
    except ImportError as error:
        logger.warning("Metrics of this model are lost (%s): install PyYAML in its environment.", error)
        return _NoMetrics()
    metrics.model_name = load.model_name
    metrics.set_request_ids(str(uuid.uuid4()))  # what is emitted while loading belongs to the model, not to an error
    metrics.sink = sink
    return metrics


# -- the handler -----------------------------------------------------------------------------------------------------


def find_handler(spec: str, model_dir: Path, manifest: Mapping[str, Any] | None = None) -> EntryPoint:
    """Imports a handler and finds its entry point.

    Args:
        spec: ``file[:function or class]`` or the name of a built-in handler.
        model_dir: absolute path of the unpacked archive.
        manifest: its manifest.

    Returns:
        The entry point. A class has been instantiated, but not initialised.

    Raises:
        ImportError: no such file, no such built-in handler, or an import inside the file fails.
        ValueError: the file has neither a function nor a class to call.
        AttributeError: the class has no ``initialize``.
    """
    file, _, function = spec.partition(":")
    module = _import_handler(spec, file, model_dir, manifest)
    found = getattr(module, function or "handle", None)
    if inspect.isclass(found):
        return _instance(found)
    if callable(found):
        function_handler: Callable[[Any, Context], Any] = found
        return EntryPoint(function_handler, lambda context: function_handler(None, context))
    return _instance(_choose_class(module))


def _import_handler(spec: str, file: str, model_dir: Path, manifest: Mapping[str, Any] | None) -> ModuleType:
    name = file.removesuffix(".py").rpartition("/")[2]
    builtin = BUILTINS.get(name)
    # Code of the model itself may carry the name of a built-in handler; then it is not the handler that is meant.
    if builtin and spec == name and _model_entry(manifest, "modelFile") == f"{name}.py":
        return _import_builtin(name, builtin)
    before = sys.modules.get(name)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the handler imports is missing, not the handler
        if builtin:
            return _import_builtin(name, builtin)
        raise ModuleNotFoundError(
            f"No handler {spec!r}: there is no {name}.py in the archive, and the built-in handlers are "
            f"{', '.join(BUILTINS)}.",
            name=name,
        ) from None
    if builtin and getattr(module, "__file__", None) is None:
        return _import_builtin(name, builtin)  # a directory of that name beside the model, not code
    if module is before and (model_dir / f"{name}.py").exists():
        origin = getattr(module, "__file__", None) or "the interpreter"
        if not Path(origin).resolve().is_relative_to(model_dir):
            raise ImportError(
                f"The handler file {name}.py has the name of a module that is in use ({origin}). Give it another name.",
                name=name,
            )
    return module


def _import_builtin(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(
            f"The built-in handler {name!r} is not part of this version ({__version__}).", name=module
        ) from None


def _choose_class(module: ModuleType) -> Any:
    classes = defined_classes(module)
    named = getattr(module, "handler", None)
    if not (hasattr(named, "handle") and hasattr(named, "initialize")):
        named = None
    if len(classes) == 1 and (named is None or hasattr(classes[0], "handle")):
        return classes[0]
    if named is not None:
        return named
    handlers = [cls for cls in classes if callable(getattr(cls, "handle", None))]
    if len(handlers) > 1:
        base = getattr(sys.modules.get("ts.torch_handler.base_handler"), "BaseHandler", None)
        handlers = [cls for cls in handlers if base is not None and issubclass(cls, base)] or handlers
    if not handlers:
        raise ValueError(
            "Expected only one class in custom service code or a function entry point "
            f"{[cls.__name__ for cls in classes]}: {module.__name__} has neither a function handle(data, context) nor "
            "a class with a method handle."
        )
    if len(handlers) > 1:
        logger.warning("%s defines several handlers; the first, %s, is used.", module.__name__, handlers[0].__name__)
    return handlers[0]


def _instance(found: Any) -> EntryPoint:
    handler: Any = found() if inspect.isclass(found) else found
    # On the instance, because __init__ may have put another callable in the place of the method.
    if not callable(getattr(handler, "handle", None)):
        raise ValueError(f"Expect handle method in class {type(handler).__name__}")  # noqa: TRY004  # as it ever was
    if not callable(getattr(handler, "initialize", None)):
        raise AttributeError(f"Class {type(handler).__name__} has no method initialize(context).")  # noqa: TRY004
    return EntryPoint(handler.handle, handler.initialize)


def wrap_in_envelope(handle: Callable[[Any, Context], Any], name: str) -> Callable[[Any, Context], Any]:
    """Puts a request envelope around a handler.

    Args:
        handle: the entry point.
        name: name of the envelope, "" for none.

    Returns:
        The entry point to call.

    Raises:
        ImportError: there is no such envelope.
    """
    if not name:
        return handle
    module_name = f"{_ENVELOPES}.{_ENVELOPE_ALIASES.get(name, name)}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ModuleNotFoundError(
            f"No request envelope {name!r} (setting service_envelope): {module_name} does not exist. "
            "Leave the setting empty for none.",
            name=module_name,
        ) from None
    classes = list_classes_from_module(module)
    if not classes:
        raise ImportError(f"Request envelope {name!r}: {module_name} defines no class.", name=module_name)
    wrapped: Callable[[Any, Context], Any] = classes[0](handle).handle
    return wrapped
