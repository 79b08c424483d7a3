"""Times of handler methods, on demand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = ["timed"]

F = TypeVar("F", bound=Callable[..., Any])


def timed(func: F) -> F:
    """Makes a handler method emit ``ts_handler_<method>`` in milliseconds when the model asks for it.

    It does so only while ``handler: {profile: true}`` stands in the model's configuration and the handler has its
    context; otherwise the method runs as if it were not wrapped. On a CUDA device the time is that of the device.

    Args:
        func: a method of a handler.

    Returns:
        The method, wrapped.
    """

    @wraps(func)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        context = getattr(self, "context", None)
        if context is None or not _profiled(context):
            return func(self, *args, **kwargs)
        stop = _start()
        result = func(self, *args, **kwargs)
        context.metrics.add_time(f"ts_handler_{func.__name__}", stop())
        return result

    return cast("F", wrapper)


def _profiled(context: Any) -> bool:
    section = (getattr(context, "model_yaml_config", None) or {}).get("handler")
    return isinstance(section, dict) and bool(section.get("profile"))


def _start() -> Callable[[], float]:
    """Starts a clock; the result stops it and tells the milliseconds."""
    torch = sys.modules.get("torch")  # a handler without torch must not pay for importing it
    if torch is not None and torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()

        def stop_on_device() -> float:
            end.record()
            torch.cuda.synchronize()
            return float(begin.elapsed_time(end))

        return stop_on_device
    began = time.perf_counter()
    return lambda: (time.perf_counter() - began) * 1000
