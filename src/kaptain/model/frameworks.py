"""The frameworks that ``Model.framework`` knows."""

from mariner.sdk import ModelFramework

__all__ = ["ModelFramework"]
