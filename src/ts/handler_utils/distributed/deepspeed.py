"""DeepSpeed: a model's inference engine, as its configuration describes it. Needs DeepSpeed when it is called."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts.importing import require

__all__ = ["get_ds_engine"]

logger = logging.getLogger(__name__)

WEIGHTS = ("*.bin", "*.pt", "*.safetensors")  # the first kind that there is


def get_ds_engine(model: Any, ctx: Any) -> Any:
    """The inference engine of a model; its ``module`` is what a handler calls.

    The configuration has ``handler.model_path``, where the weights lie, and in the section ``deepspeed`` maybe
    ``config``, a JSON file of the archive with DeepSpeed's settings, and ``checkpoint``, the name of a JSON file that
    is written here for DeepSpeed: the list of the files with weights.

    Args:
        model: the module, usually without weights.
        ctx: says where the archive is and how it is configured.

    Raises:
        ImportError: DeepSpeed is not installed.
        KeyError: there is no ``handler.model_path``.
        ValueError: there is no section ``deepspeed``, or a file it names is missing.
    """
    section = (ctx.model_yaml_config or {}).get("deepspeed")
    if not isinstance(section, Mapping):
        raise ValueError(f"{ctx.model_name} has no section deepspeed in its model configuration.")  # noqa: TRY004
    model_dir = Path(ctx.system_properties["model_dir"])
    model_path = ctx.model_yaml_config["handler"]["model_path"]
    options = {}
    if "config" in section:
        config = model_dir / section["config"]
        if not config.is_file():
            raise ValueError(
                f"{ctx.model_name} has no DeepSpeed config file {section['config']}. Package it with --extra-files."
            )
        options["config"] = str(config)
    if "checkpoint" in section:
        checkpoint = model_dir / section["checkpoint"]
        _write_checkpoint(checkpoint, model_dir / model_path)
        options["checkpoint"] = str(checkpoint)
    return require("deepspeed", "deepspeed", "This model needs").init_inference(model, **options)


def _write_checkpoint(file: Path, weights: Path) -> None:
    """Lists the files with weights for DeepSpeed, in a file that is there whole or not at all: ranks race for it."""
    for pattern in WEIGHTS:
        found = sorted(str(path) for path in weights.rglob(pattern))
        if found:
            break
    else:
        raise ValueError(f"There are no weights below {weights} (handler.model_path): no {', '.join(WEIGHTS)}.")
    content = json.dumps({"type": "ds_model", "checkpoints": found, "version": 1.0})
    if file.is_file() and file.read_text(encoding="utf-8") == content:
        return
    written = file.with_name(f"{file.name}.{os.getpid()}")
    written.write_text(content, encoding="utf-8")
    written.replace(file)
    logger.info("DeepSpeed loads %d files, listed in %s", len(found), file)
