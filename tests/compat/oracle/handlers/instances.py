"""For the envelopes of KServe: answers with the instances or tensors it was given, and whether to explain."""

from __future__ import annotations

from typing import Any


def handle(data: list[Any] | None, context: Any) -> list[Any]:
    if data is None:
        return []
    explain = context.get_request_header(0, "explain")
    return [{"given": repr(item) if has_bytes(item) else item, "explain": explain} for item in data]


def has_bytes(item: Any) -> bool:
    values = item.values() if isinstance(item, dict) else [item]
    return any(isinstance(value, (bytes, bytearray)) for value in values)
