"""The class ``Model``."""

from mariner.sdk import Model

__all__ = ["Model"]
