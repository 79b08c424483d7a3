"""Answers in three pieces and an end; a body "breaks" is an error after the first piece."""

from __future__ import annotations

from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str]:
    if data is None:
        return []
    context.set_response_header(0, "dummy", "1")
    for piece in ("one ", "two ", "three "):
        send_intermediate_predict_response(
            [piece], context.request_ids, "Intermediate Prediction success", 200, context
        )
        if data[0]["body"] == "breaks":
            raise ValueError("boom")
    return ["end"]
