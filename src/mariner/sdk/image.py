"""What a container image of a model is built from."""

from __future__ import annotations

import shutil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mariner import __version__
from mariner.errors import InvalidModel
from mariner.sdk.server_config import TorchServingArtifactBuilder
from mariner.sdk.serving_config import require_file

if TYPE_CHECKING:
    from mariner.sdk.model import Model

__all__ = ["DEFAULT_BASE_IMAGE", "write_image_context"]

DEFAULT_BASE_IMAGE = f"mariner:{__version__}-cpu"

_DOCKERFILE = """\
FROM {base_image}
COPY model-store /mnt/models/model-store
COPY config /mnt/models/config
"""
_PROGRAM = """\
COPY program /mnt/models/program
ENV PYTHONPATH=/mnt/models/program
"""
_COMMAND = """\
CMD ["torchserve", "--start", "--ncs", "--model-store", "/mnt/models/model-store", \
"--ts-config", "/mnt/models/config/config.properties"]
"""


def write_image_context(model: Model, directory: str | PathLike[str]) -> Path:
    """See :meth:`mariner.sdk.Model.image_context`."""
    serving = model.serving()
    program = [*([model.main_file] if model.main_file else []), *model.extra_files]
    names = [Path(name).name for name in program]
    for name in program:
        require_file("main_file" if name == model.main_file else "extra_files", name)
        if names.count(Path(name).name) > 1:
            raise InvalidModel(
                f"main_file, extra_files: two files are called {Path(name).name}.", hint="Rename one of them."
            )
    context = Path(directory)
    for part in ("model-store", "config", "program"):
        shutil.rmtree(context / part, ignore_errors=True)
        if part != "program" or program:
            (context / part).mkdir(parents=True)
    archive = model.package(context / "model-store")
    if serving.config_properties is not None:
        shutil.copyfile(serving.config_properties, context / "config" / "config.properties")
    else:
        TorchServingArtifactBuilder.write_config_properties(
            model.service_name, archive.name, context / "config", version=model.version
        )
    for name in program:
        shutil.copyfile(name, context / "program" / Path(name).name)
    text = _DOCKERFILE.format(base_image=model.base_image or DEFAULT_BASE_IMAGE)
    (context / "Dockerfile").write_text(text + (_PROGRAM if program else "") + _COMMAND)
    return context
