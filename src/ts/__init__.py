"""The worker process, and everything that handlers import.

``BaseHandler`` and ``Context`` are imported on first use: ``import ts`` stays cheap and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ts.version import __version__

if TYPE_CHECKING:
    from ts.context import Context
    from ts.torch_handler.base_handler import BaseHandler

__all__ = ["BaseHandler", "Context", "__version__"]

_HOMES = {"BaseHandler": "ts.torch_handler.base_handler", "Context": "ts.context"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # only who asks pays

    return getattr(import_module(_HOMES[name]), name)
