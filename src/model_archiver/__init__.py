"""Packages models into archives: the ``torch-model-archiver`` command and TorchServe's Python interface to it."""

from __future__ import annotations

import sys
from pathlib import Path

from mariner.archive.cli import model_archiver as _command
from mariner.archive.cli import parse_model_arguments
from mariner.archive.write import MODEL_ARCHIVER_VERSION, write_model_archive
from mariner.archive.write import ArchiveError as ModelArchiverError
from mariner.archive.write import ArchiveSpec as ModelArchiverConfig

__all__ = ["ModelArchiver", "ModelArchiverConfig", "ModelArchiverError", "generate_model_archive", "main"]

__version__ = MODEL_ARCHIVER_VERSION


def generate_model_archive(config: ModelArchiverConfig | None = None) -> Path:
    """Packages a model.

    Args:
        config: what to package; taken from the command line if it is missing.

    Returns:
        The archive.

    Raises:
        ModelArchiverError: the archive cannot be written as asked.
        FileNotFoundError: a file to package does not exist.
    """
    return write_model_archive(config if config is not None else parse_model_arguments())


class ModelArchiver:
    """The same function as TorchServe also offers it."""

    generate_model_archive = staticmethod(generate_model_archive)


def main() -> None:
    """The command."""
    sys.exit(_command())
