"""The API described by itself, from the table of routes and what is known about each."""

from mariner.http.openapi.description import ApiDescription

__all__ = ["ApiDescription"]
