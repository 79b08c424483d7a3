"""Errors that handlers raise to choose the answer."""

from __future__ import annotations

__all__ = ["PredictionException"]


class PredictionException(Exception):
    """Raised by a handler to answer the whole batch with a status and a message of its own.

    Attributes:
        message: what the client is told.
        error_code: HTTP status of the answer.
    """

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"
