"""The table of all operations that are described: those of each listener, and those that describe them."""

from __future__ import annotations

from mariner.auth import Listener
from mariner.http.openapi.inference import INFERENCE
from mariner.http.openapi.management import MANAGEMENT
from mariner.http.openapi.operations import ALWAYS, Answer, Operation, Parameter, Table
from mariner.http.openapi.schemas import TEXT, array

__all__ = ["DESCRIPTION", "OPERATIONS"]

_METRICS: Table = {
    "/metrics": {
        "get": Operation(
            "metrics",
            "Metrics",
            {200: Answer("One line per sample.", TEXT, "text/plain", example="# TYPE Requests2XX counter\n")},
            ALWAYS,
            (Parameter("name[]", array(TEXT, description="Only samples of these names.")),),
        )
    },
}

OPERATIONS: dict[Listener, Table] = {
    Listener.INFERENCE: INFERENCE,
    Listener.MANAGEMENT: MANAGEMENT,
    Listener.METRICS: _METRICS,
}

_DOCUMENT = Answer("An OpenAPI document.", {"type": "object"})

DESCRIPTION: dict[str, dict[str, tuple[str, Operation]]] = {
    "/": {
        "options": (
            "This listener's API, for clients made for TorchServe.",
            Operation("apiDescription", "API description", {200: _DOCUMENT}, description="OpenAPI 3.0."),
        )
    },
    "/api-description": {
        "get": (
            "The same as OPTIONS /.",
            Operation("api-description", "API description", {200: _DOCUMENT}, deprecated=True),
        )
    },
    "/openapi.json": {
        "get": (
            "This listener's API.",
            Operation("openApiDocument", "API description", {200: _DOCUMENT}, description="OpenAPI 3.1."),
        )
    },
    "/docs": {
        "get": (
            "A page to read about the API and to try it.",
            Operation("docs", "API description", {200: Answer("The page.", TEXT, "text/html")}),
        )
    },
}
"""Summaries and operations of what describes the API itself, on every listener and without a key."""
