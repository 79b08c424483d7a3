"""Making a loaded model faster: ``torch.compile`` and Intel's extension, as the model's configuration says."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from ts.utils.util import PT2Backend, check_valid_pt2_backend

__all__ = ["IPEX_AVAILABLE", "compile_model", "compile_options", "ipex", "optimize_for_intel"]

logger = logging.getLogger(__name__)

ipex: Any = None
if os.environ.get("TS_IPEX_ENABLE") == "true":
    try:
        ipex = importlib.import_module("intel_extension_for_pytorch")
    except ImportError:
        logger.warning("ipex_enable is set, but intel_extension_for_pytorch is not installed: it is not used.")
IPEX_AVAILABLE = ipex is not None


def compile_options(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of ``torch.compile`` that a model configuration asks for; None if the model is not to be compiled.

    The form is ``pt2: {compile: {enable: true, backend: …, mode: …}}``. The older ``pt2: inductor`` and
    ``pt2: {backend: …}`` still work.

    Args:
        config: the model configuration; it is not changed.

    Raises:
        ValueError: ``pt2`` or ``compile`` is neither text nor mapping.
    """
    section = config.get("pt2")
    if not section:
        return None
    if not isinstance(section, (str, Mapping)):
        raise ValueError("pt2 should be str or dict")  # noqa: TRY004  # a wrong value in a file
    if isinstance(section, Mapping) and ("compile" in section or "export" in section):
        options = section.get("compile") or {}
        if not isinstance(options, Mapping):
            raise ValueError("pt2.compile should be dict")
        options = dict(options)
        if not options.pop("enable", False):
            return None
    else:
        options = {"backend": section} if isinstance(section, str) else dict(section)
        logger.warning("This form of pt2 is deprecated. Write pt2: {compile: {enable: true, backend: ...}} instead.")
    backend = options.get("backend")
    return options if backend is None or _is_backend(backend) else None


def _is_backend(name: str) -> bool:
    if name not in {known.value for known in PT2Backend}:
        dynamo = importlib.import_module("torch._dynamo")  # takes a second to import
        if name in dynamo.list_backends(exclude_tags=()):
            return True
    return check_valid_pt2_backend(name)


def compile_model(model: Any, options: Mapping[str, Any]) -> Any:
    """The compiled model, or the model itself if it cannot be compiled: slow answers are better than none.

    Args:
        model: a module.
        options: arguments of ``torch.compile``.
    """
    try:
        compiled = torch.compile(model, **options)
    except Exception as error:  # noqa: BLE001  # compilers fail in every way there is
        logger.warning("The model could not be compiled and is served as it is: %s", error)
        return model
    chosen = ", ".join(f"{key} {value}" for key, value in options.items())
    logger.info("Compiled model with %s", chosen or "backend inductor")
    return compiled


def optimize_for_intel(model: Any, device: Any) -> Any:
    """The model rewritten by Intel's extension.

    Args:
        model: an eager module or TorchScript.
        device: where it computes.
    """
    return ipex.optimize(model.to(memory_format=torch.channels_last).to(device))
