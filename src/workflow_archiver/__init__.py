"""Packages workflows into archives: the ``torch-workflow-archiver`` command."""

from __future__ import annotations

import sys

from mariner.archive.cli import workflow_archiver as _command

__all__ = ["main"]


def main() -> None:
    """The command."""
    sys.exit(_command())
