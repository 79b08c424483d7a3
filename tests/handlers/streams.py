"""Answers in three pieces and an end."""

from __future__ import annotations

from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    if data is None:
        return []
    for piece in range(3):
        pieces = [f"{row['body']}{piece} " for row in data]
        send_intermediate_predict_response(pieces, context.request_ids, "Intermediate Prediction success", 200, context)
    return ["end" for _ in data]
