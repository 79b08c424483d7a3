"""Names for models."""

from mariner.sdk import sanitize_string

__all__ = ["sanitize_string"]
