"""What an exchange is about, where the whole answer would say too much."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from oracle.answer import Answer, json_text

__all__ = ["families", "members", "only_paths", "openapi_outline", "tensor_values", "without_sizes"]


def openapi_outline(answer: Answer) -> Answer:
    """Of a document: its title, and the operations of each path."""
    try:
        document = json.loads(str(answer.body))
        paths = {
            path: {method: operation.get("operationId") for method, operation in sorted(item.items())}
            for path, item in sorted(document["paths"].items())
        }
    except (ValueError, KeyError, AttributeError):
        return answer
    outline = {"openapi": document["openapi"], "title": document["info"]["title"], "paths": paths}
    return replace(answer.with_headers({"content-length": None}), body=json_text(outline))


def only_paths(*paths: str) -> Callable[[Answer], Answer]:
    """Of the outline of a document: these paths."""

    def view(answer: Answer) -> Answer:
        outline = json.loads(str(answer.body))
        outline["paths"] = {path: item for path, item in outline["paths"].items() if path in paths}
        return replace(answer, body=json_text(outline))

    return view


def members(*names: str) -> Callable[[Answer], Answer]:
    """Of a description: some members of each model."""

    def view(answer: Answer) -> Answer:
        try:
            models = json.loads(str(answer.body))
            chosen = [{name: _member(model, name) for name in names} for model in models]
        except (ValueError, KeyError, AttributeError, TypeError):
            return answer
        return replace(answer, body=json_text(chosen))

    return view


def _member(model: dict[str, Any], name: str) -> Any:
    return len(model["workers"]) if name == "workers" else model.get(name)


def families(*names: str, but: str = "") -> Callable[[Answer], Answer]:
    """Of metrics: the families with these names, or all but those with this prefix."""

    def view(answer: Answer) -> Answer:
        lines = str(answer.body).splitlines(keepends=True)
        kept = [line for line in lines if (_family(line) in names if names else not _family(line).startswith(but))]
        return replace(answer, body="".join(kept))

    return view


def _family(line: str) -> str:
    if line.startswith("#"):
        return line.split(" ")[2]
    return line.partition("{")[0].partition(" ")[0]


def without_sizes(answer: Answer) -> Answer:
    """Of a batch: that there was one."""
    return replace(answer, body=re.sub(r"batch of \d", "batch of some", str(answer.body)))


def tensor_values(answer: Answer) -> Answer:
    """Of a saved tensor: its values."""
    import torch  # noqa: PLC0415 - only where a tensor comes back

    if not isinstance(answer.body, bytes):
        return answer
    values = torch.load(io.BytesIO(answer.body), weights_only=True)
    return replace(answer, body=f"{values.dtype} {values.tolist()}")
