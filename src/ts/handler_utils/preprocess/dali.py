"""The DALI pipeline of a model: the one in its archive, or the one that image classifiers use.

Needs DALI when a pipeline is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts.importing import require

__all__ = ["get_dali_pipeline"]

PACKAGE = "nvidia-dali-cuda120"
WHO = "DALI preprocessing needs"

# What ImageTransform does for image_classifier, in units of eight-bit channels.
RESIZE, CROP = 256, (224, 224)
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))


def get_dali_pipeline(ctx: Any) -> Any:
    """The pipeline that the section ``dali`` of the model configuration describes, built.

    The section has ``batch_size``, ``num_threads``, ``device_id`` and ``seed``, and maybe ``pipeline_file``: the
    file of a serialized pipeline in the archive. Either has one input, ``source``: encoded images.

    Args:
        ctx: says where the archive is and how it is configured.

    Raises:
        ImportError: DALI is not installed.
        KeyError: the section lacks one of its keys.
        RuntimeError: there is no such file.
        ValueError: there is no such section.
    """
    section = (ctx.model_yaml_config or {}).get("dali")
    if not isinstance(section, Mapping):
        raise ValueError(  # noqa: TRY004  # a wrong value in a file
            f"{ctx.model_name} has no section dali in its model configuration. It needs batch_size, num_threads, "
            "device_id and seed."
        )
    options = {name: section[name] for name in ("batch_size", "num_threads", "device_id", "seed")}
    file = section.get("pipeline_file")
    if file is None:
        return _classifier_pipeline(options)
    path = Path(ctx.system_properties["model_dir"], file)
    if not path.is_file():
        raise RuntimeError(f"Missing dali pipeline file. {file} is not in the archive: package it with --extra-files.")
    pipeline_class = require("nvidia.dali.pipeline", PACKAGE, WHO).Pipeline
    pipeline = pipeline_class.deserialize(filename=str(path), prefetch_queue_depth=1, **options)
    pipeline.build()
    return pipeline


def _classifier_pipeline(options: Mapping[str, Any]) -> Any:
    pipeline_class = require("nvidia.dali.pipeline", PACKAGE, WHO).Pipeline
    fn = require("nvidia.dali.fn", PACKAGE, WHO)
    types = require("nvidia.dali.types", PACKAGE, WHO)
    # A batch is asked for at a time: what is prefetched would be the answer to the next one.
    pipeline = pipeline_class(prefetch_queue_depth=1, **options)
    with pipeline:
        encoded = fn.external_source(name="source", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(encoded, device="mixed", output_type=types.RGB)
        images = fn.resize(images, resize_shorter=RESIZE, interp_type=types.INTERP_TRIANGULAR)
        images = fn.crop_mirror_normalize(images, crop=CROP, mean=MEAN, std=STD, dtype=types.FLOAT, output_layout="CHW")
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
