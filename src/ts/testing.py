"""What ships for tests of handlers: a context that nobody has to fill, and a handler's answer without a server."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ts.context import Context, RequestProcessor
from ts.loader import EntryPoint, find_handler
from ts.metrics.legacy import MetricsStore
from ts.version import __version__

__all__ = ["MockContext", "run_handler"]


class MockContext(Context):
    """A context for tests of handlers: that of an archive whose files lie in a directory.

    Args:
        model_pt_file: file name of the weights; None for none.
        model_dir: directory of the files.
        model_file: name of the Python file with the model's class; None for none.
        gpu_id: index of the GPU; without effect on a machine that has none.
        model_name: name of the model.
        model_yaml_config_file: file name of the model configuration in ``model_dir``; None for none.

    Attributes:
        explain: set it to let the next call explain.
    """

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str | Path = ".",
        model_file: str | None = "model.py",
        gpu_id: str | int | None = "0",
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        packed = {"modelName": model_name, "serializedFile": model_pt_file, "modelFile": model_file}
        manifest = {"model": {key: value for key, value in packed.items() if value is not None}}
        super().__init__(
            model_name,
            os.fspath(model_dir),
            manifest,
            1,
            int(gpu_id) if gpu_id is not None and _has_gpu() else None,
            __version__,
            metrics=MetricsStore(str(uuid.uuid4()), model_name),
            model_yaml_config=_read_config(Path(model_dir, model_yaml_config_file)) if model_yaml_config_file else {},
        )
        self.explain = False
        _begin(self, [{}])

    def get_request_header(self, idx: int, key: str) -> Any:
        """The value of a request header; ``explain`` is ``"True"`` for the first request if the attribute is set."""
        if key == "explain" and idx == 0 and self.explain:
            return "True"
        return super().get_request_header(idx, key)


def run_handler(
    handler: Any,
    data: Sequence[Any],
    *,
    model_dir: str | Path = ".",
    context: Context | None = None,
    config: Mapping[str, Any] | None = None,
    headers: Sequence[dict[str, Any]] | None = None,
) -> list[Any]:
    """Loads a handler, gives it one batch, and returns its answers, as a worker would.

    While it runs, ``model_dir`` is the current directory and the first place to import from; what was imported from
    there is forgotten afterwards.

    Args:
        handler: what ``--handler`` takes (``file.py``, ``file.py:function``, a built-in name), or a class, an instance
            or a function.
        data: one element for each request: what the handler gets for it, or bytes or text, which stand for a body.
        model_dir: directory of the files, with or without ``MAR-INF/MANIFEST.json``.
        context: the context to use, to look at it afterwards; otherwise one is made of the arguments and the manifest.
        config: the model configuration; by default what the manifest names.
        headers: request headers, one dictionary for each request.

    Returns:
        One answer for each request.

    Raises:
        Exception: whatever the handler raises.
        ImportError: there is no such handler.
        TypeError: the handler returned no list.
        ValueError: it returned another number of answers than there are requests, or ``headers`` has another length
            than ``data``.
    """
    directory = Path(model_dir).resolve()
    rows = [{"body": row} if isinstance(row, (bytes, bytearray, str)) else row for row in data]
    requests = [{} for _ in rows] if headers is None else list(headers)
    if len(requests) != len(rows):
        raise ValueError(f"There are {len(rows)} requests, but headers for {len(requests)}. Give one of each for each.")
    if context is None:
        context = _open_context(directory)
    if config is not None:
        context.model_yaml_config = dict(config)
    with _inside(directory):
        entry = _entry_point(handler, directory, context.manifest)
        loop: list[asyncio.AbstractEventLoop] = []
        try:
            if inspect.iscoroutinefunction(entry.handle):
                loop.append(_open_loop())
            _finish(entry.initialize(context), loop)
            _begin(context, requests)
            answers = _finish(entry.handle(rows, context), loop)
        finally:
            if loop:
                asyncio.set_event_loop(None)
                loop[0].close()
    if not isinstance(answers, list):
        raise TypeError(f"The handler returned {type(answers).__name__}. It must return a list, one answer a request.")
    if len(answers) != len(rows):
        raise ValueError(f"The handler returned {len(answers)} answers for {len(rows)} requests. It must be one each.")
    return answers


def _begin(context: Context, requests: Sequence[dict[str, Any]]) -> None:
    context.request_processor = [RequestProcessor(dict(request)) for request in requests]
    context.request_ids = {index: str(uuid.uuid4()) for index in range(len(requests))}
    if context.metrics is not None:
        context.metrics.set_request_ids(context.request_ids)


def _finish(result: Any, loop: list[asyncio.AbstractEventLoop]) -> Any:
    """What a handler returned, waited for if it has to be; all of a handler's coroutines share one event loop."""
    if isinstance(result, list) or not inspect.isawaitable(result):
        return result
    if not loop:
        loop.append(_open_loop())

    async def wait() -> Any:
        return await result

    return loop[0].run_until_complete(wait())


def _open_loop() -> asyncio.AbstractEventLoop:
    """Current for this thread, as in a worker, so that what a handler makes while it loads belongs to the same loop."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def _open_context(directory: Path) -> Context:
    path = directory / "MAR-INF" / "MANIFEST.json"
    manifest = json.loads(path.read_bytes()) if path.is_file() else {}
    model = manifest.get("model", {})
    context = MockContext(
        model.get("serializedFile"),
        directory,
        model.get("modelFile"),
        model_name=model.get("modelName", "model"),
        model_yaml_config_file=model.get("configFile"),
    )
    if manifest:
        context.manifest = manifest
    return context


def _entry_point(handler: Any, directory: Path, manifest: Mapping[str, Any] | None) -> EntryPoint:
    if isinstance(handler, str):
        return find_handler(handler, directory, manifest)
    if inspect.isclass(handler):
        handler = handler()
    if hasattr(handler, "handle"):
        return EntryPoint(handler.handle, getattr(handler, "initialize", lambda _: None))
    if not callable(handler):
        raise TypeError(f"{type(handler).__name__} is no handler: it has no method handle(data, context).")
    function: Callable[[Any, Context], Any] = handler
    return EntryPoint(function, lambda context: function(None, context))


@contextmanager
def _inside(directory: Path) -> Iterator[None]:
    where, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    forgotten: list[str] = []
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.chdir(where)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            # A directory may hold a whole environment; only what is imported by its own name was imported from there.
            root = name.partition(".")[0]
            if _origin(root) in (directory / f"{root}.py", directory / root / "__init__.py"):
                forgotten.append(name)
        for name in forgotten:
            del sys.modules[name]


def _origin(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _read_config(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415  # only models with a configuration need it

    return yaml.safe_load(path.read_bytes()) or {}


def _has_gpu() -> bool:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
