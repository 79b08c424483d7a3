"""A service that counts words: the whole contract of a handler file, without a model and without PyTorch."""

from __future__ import annotations

from typing import Any


class WordCounter:
    """Counts the words of texts."""

    def __init__(self) -> None:
        self.initialized = False
        self.batch_size = 0

    def initialize(self, context: Any) -> None:
        """Called once per worker, when the model is loaded: the place for everything that takes long."""
        self.batch_size = context.system_properties["batch_size"]
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, int]]:  # noqa: ARG002
        """Answers a batch: one answer for each request, in the same order."""
        return [{"words": len(to_text(row.get("data") or row.get("body")).split())} for row in data]


def to_text(body: Any) -> str:
    """The text of a request: bodies that are declared as text come decoded, others as bytes."""
    return bytes(body).decode(errors="replace") if isinstance(body, bytearray) else str(body or "")


_service = WordCounter()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, int]] | None:
    """The entry point: called once with no data when a worker loads the model, then once for each batch."""
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.handle(data, context)
