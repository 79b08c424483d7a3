"""Gives the kind of answer that the body names."""

from __future__ import annotations

from typing import Any

RESULTS: dict[str, Any] = {
    "dictionary": [{"label": "caf\u00e9", "scores": [0.5, 1]}],
    "text": ["caf\u00e9\n"],
    "bytes": [bytes(range(256))],
    "empty": [""],
    "long": ["x" * 2000],
    "not a list": "text",
    "too many": ["one", "two"],
    "no JSON": [{1, 2}],
}


def handle(data: list[dict[str, Any]] | None, context: Any) -> Any:
    if not data:
        return None
    body = data[0]["body"]
    kind = body if isinstance(body, str) else bytes(body).decode().strip()
    set_head(kind, context)
    return RESULTS.get(kind, [kind])


def set_head(kind: str, context: Any) -> None:
    match kind:
        case "header":
            context.set_response_content_type(0, "text/plain")
            context.set_response_header(0, "dummy", "1")
        case "origin":
            context.set_response_header(0, "Access-Control-Allow-Origin", "https://handler.example")
        case "reserved":
            context.set_response_header(0, "x-request-id", "the handler's")
            context.set_response_header(0, "Cache-Control", "max-age=60")
        case "phrase":
            context.set_response_status(202, "Handled so far")
        case "not found":
            context.set_response_status(404)
        case "599":
            context.set_response_status(599)
