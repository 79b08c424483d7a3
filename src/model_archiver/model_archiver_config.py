"""Old import path."""

from __future__ import annotations

from model_archiver import ModelArchiverConfig

__all__ = ["ModelArchiverConfig"]
