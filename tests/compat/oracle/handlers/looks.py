"""Answers with what it was given: the fields of the body with their types, the headers, the id."""

from __future__ import annotations

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, Any]]:
    return [
        {
            "version": context.manifest["model"]["modelVersion"],
            "request id": context.get_request_id(index),
            "headers": dict(sorted(context.get_all_request_header(index).items())),
            "fields": {name: {type(value).__name__: readable(value)} for name, value in row.items()},
        }
        for index, row in enumerate(data or ())
    ]


def readable(value: Any) -> Any:
    return bytes(value).decode("latin-1") if isinstance(value, (bytes, bytearray)) else value
