"""Envelope ``body``: the handler gets the body of each request instead of a dict around it."""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope.base import BaseEnvelope, body_of

__all__ = ["BodyEnvelope"]


class BodyEnvelope(BaseEnvelope):
    """Takes the dict off each request; responses pass unchanged."""

    def parse_input(self, data: Any) -> list[Any]:
        """The bodies.

        Args:
            data: one element for each request.
        """
        return [body_of(row) for row in data]

    def format_output(self, data: Any) -> Any:
        """The handler's answers, as they are.

        Args:
            data: what the handler returned.
        """
        return data
