# SPDX-License-Identifier: Apache-2.0
"""Mariner, a model server that runs TorchServe archives and handlers unchanged."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mariner.sdk import Deployment, Model

__version__ = "0.1.0"

__all__ = ["Deployment", "Model", "__version__"]


def __getattr__(name: str) -> Any:
    """The names of the SDK, imported when they are asked for: the server needs none of it."""
    if name in {"Deployment", "Model"}:
        return getattr(import_module("mariner.sdk"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
