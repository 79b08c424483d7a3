"""Answers which request of its sequence this is; a body "end" says in the answer that the sequence ends."""

from __future__ import annotations

from typing import Any

SEEN: dict[str, int] = {}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, Any]]:
    answers = []
    for index, row in enumerate(data or ()):
        sequence = context.get_sequence_id(index)
        SEEN[sequence] = SEEN.get(sequence, 0) + 1
        if row["body"] == "end":
            context.set_response_header(index, context.header_key_sequence_end, sequence)
        start = context.get_request_header(index, context.header_key_sequence_start)
        answers.append({"sequence": sequence, "start": start, "request": SEEN[sequence]})
    return answers
