"""Goes into the archive beside the file that calls it: ``from base_handler import handler_factory``."""

from __future__ import annotations

from ts.factory import handler_factory

__all__ = ["handler_factory"]
