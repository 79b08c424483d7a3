"""PiPPy: a model cut into stages, one for each rank, under the names that handlers import.

The package PiPPy is discontinued; its successor is ``torch.distributed.pipelining``. What is here works where PiPPy is
still installed, and needs it when a model is cut, not before.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts.importing import require

__all__ = ["get_pipeline_driver", "get_pipline_driver", "initialize_rpc_workers"]

logger = logging.getLogger(__name__)


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Any) -> None:
    """Connects the ranks of a worker with each other.

    Args:
        local_rank: number of this rank.
        world_size: how many ranks there are.
        ctx: has ``pippy.rpc_timeout``, in seconds, and ``pippy.num_worker_threads`` in its configuration.

    Raises:
        KeyError: the configuration lacks one of them.
    """
    torch = importlib.import_module("torch")
    rpc = importlib.import_module("torch.distributed.rpc")
    section = ctx.model_yaml_config["pippy"]
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=section["num_worker_threads"], rpc_timeout=section["rpc_timeout"]
    )
    count = torch.cuda.device_count()
    if count:
        for rank in range(world_size):
            options.set_device_map(f"worker{rank}", {local_rank % count: rank % count})
    rpc.init_rpc(f"worker{local_rank}", rank=local_rank, world_size=world_size, rpc_backend_options=options)
    logger.info("Rank %d of %d is connected.", local_rank, world_size)


def get_pipeline_driver(model: Any, world_size: int, ctx: Any) -> Any:
    """A model that runs on all ranks; to be called by the first one.

    The configuration has ``pippy.input_names``, ``pippy.model_type`` (``HF`` for models of Transformers),
    ``handler.model_path``, and maybe ``pippy.chunks`` (1) and ``handler.index_filename``.

    Args:
        model: the module, whole.
        world_size: how many ranks there are.
        ctx: has the configuration.

    Returns:
        The model for ``HF``, whose ``forward`` then runs on all ranks; else the driver, which is called like the model.

    Raises:
        AssertionError: the configuration lacks a key, or the index file is missing.
        ImportError: PiPPy is not installed.
    """
    pippy_section, handler_section = _section(ctx, "pippy"), _section(ctx, "handler")
    for section, name in (
        (pippy_section, "input_names"),
        (pippy_section, "model_type"),
        (handler_section, "model_path"),
    ):
        if name not in section:
            raise AssertionError(f"Missing {name!r} key in YAML config")
    index = None
    if handler_section.get("index_filename") is not None:
        index = Path(handler_section["model_path"], handler_section["index_filename"])
        if not index.is_file():
            raise AssertionError(f"Index file {str(index)!r} not found")
    pippy = require("pippy", "torchpippy", "Cutting this model into stages needs")
    hugging_face = pippy_section["model_type"] == "HF"
    tracing = require("pippy.hf", "torchpippy", "Cutting this model into stages needs") if hugging_face else None
    model.eval()
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if name not in pippy_section["input_names"]
    }
    if hugging_face and "bloom" in type(model).__name__.lower():
        defaults.setdefault("deprecated_arguments", {})
    driver, _ = pippy.all_compile(
        model,
        num_ranks=world_size,
        num_chunks=pippy_section.get("chunks", 1),
        schedule="FillDrain",
        split_policy=pippy.split_into_equal_size(world_size),
        tracer=None if tracing is None else tracing.PiPPyHFTracer(),
        concrete_args=defaults,
        index_filename=None if index is None else str(index),
        checkpoint_prefix=None,
    )
    if tracing is None:
        return driver
    tracing.inject_pipeline_forward(model, driver)
    return model


get_pipline_driver = get_pipeline_driver  # the misspelt name that handlers import


def _section(ctx: Any, name: str) -> Mapping[str, Any]:
    section = (ctx.model_yaml_config or {}).get(name)
    if not isinstance(section, Mapping):
        raise AssertionError(f"Missing {name!r} key in YAML config")  # noqa: TRY004  # as handlers expect it
    return section
