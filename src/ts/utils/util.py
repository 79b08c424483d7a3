"""What handlers import from here: labels, errors, classes of a module, model configuration, ``torch.compile`` names."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from ts.errors import PredictionException
from ts.importing import list_classes_from_module
from ts.labels import load_label_mapping, map_class_to_label

__all__ = [
    "CLEANUP_REGEX",
    "PT2Backend",
    "PredictionException",
    "check_valid_pt2_backend",
    "deprecated",
    "get_yaml_config",
    "list_classes_from_module",
    "load_label_mapping",
    "map_class_to_label",
]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

CLEANUP_REGEX = re.compile(r"<[^>]*>|&(?:[A-Za-z][A-Za-z0-9]*|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")  # HTML tags, entities


class PT2Backend(str, Enum):
    """Backends of ``torch.compile`` that model configurations name."""

    EAGER = "eager"
    AOT_EAGER = "aot_eager"
    INDUCTOR = "inductor"
    NVFUSER = "nvfuser"
    AOT_NVFUSER = "aot_nvfuser"
    AOT_CUDAGRAPHS = "aot_cudagraphs"
    OFI = "ofi"
    FX2TRT = "fx2trt"
    ONNXRT = "onnxrt"
    IPEX = "ipex"
    TORCHXLA_TRACE_ONCE = "torchxla_trace_once"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    HPU_BACKEND = "hpu_backend"


def check_valid_pt2_backend(backend: str) -> bool:
    """Whether ``backend`` is one of :class:`PT2Backend`; the log says so if it is not.

    Args:
        backend: name of a backend.
    """
    names = [known.value for known in PT2Backend]
    if backend in names:
        return True
    logger.warning("%s is no known backend of torch.compile; known are %s.", backend, ", ".join(names))
    return False


def deprecated(
    version: str, replacement: str = "", klass: type[Warning] = PendingDeprecationWarning
) -> Callable[[F], F]:
    """Marks a function that callers should leave; each call warns.

    Args:
        version: the release that deprecated it.
        replacement: what to call instead.
        klass: class of the warning.

    Returns:
        The decorator.
    """

    def decorate(func: F) -> F:
        message = f"{func.__module__}.{func.__name__} is deprecated since version {version}."
        if replacement:
            message += f" Use {replacement} instead."

        @wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(message, klass, stacklevel=2)
            return func(*args, **kwargs)

        return cast("F", wrapper)

    return decorate


def get_yaml_config(yaml_file_path: str | Path) -> Any:
    """The content of a YAML file.

    Args:
        yaml_file_path: the file.

    Raises:
        OSError: it cannot be read.
        yaml.YAMLError: it is not YAML.
    """
    import yaml  # noqa: PLC0415  # only this function needs it

    return yaml.safe_load(Path(yaml_file_path).read_text(encoding="utf-8"))
