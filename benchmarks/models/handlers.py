"""Loads one of the handlers outside any server that would do it; shared by the mosec app and the bare loop."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any


def load(model_dir: str, handler: str) -> Any:
    """The handler object that ``module:Class`` in ``model_dir`` names, initialized."""
    module, _, name = handler.partition(":")
    sys.path.insert(0, model_dir)
    loaded = getattr(importlib.import_module(module), name)()
    loaded.initialize(SimpleNamespace(system_properties={"model_dir": model_dir}))
    return loaded
