"""Envelope ``json``: ``{"instances": [...]}`` in, the text ``{"predictions": [...]}`` out."""

from __future__ import annotations

import base64
import json
from typing import Any

from ts.torch_handler.request_envelope.base import InstancesEnvelope, MalformedRequest, instances_of

__all__ = ["JSONEnvelope"]


class JSONEnvelope(InstancesEnvelope):
    """The handler gets the instances of all requests and returns one answer for each; ``{"b64": ...}`` means bytes."""

    def open(self, row: Any) -> list[Any]:
        """The instances of one request, base64 decoded.

        Args:
            row: the parameters of the request.

        Raises:
            MalformedRequest: there is no list of instances, or something is no base64.
        """
        return [_decode_instance(instance) for instance in instances_of(row)]

    def format_output(self, data: Any) -> list[Any]:
        """The responses, one text for each request.

        Args:
            data: the handler's answers, one for each instance.
        """
        self._check_count(data)
        return super().format_output(data)

    def close(self, answers: Any, index: int) -> str:  # noqa: ARG002  # all requests get the same form
        """The response to one request.

        Args:
            answers: the answers to its instances.
            index: of the request in the batch.
        """
        return json.dumps({"predictions": answers})


def _decode_instance(instance: Any) -> Any:
    if not isinstance(instance, dict):
        return instance
    if _is_encoded(instance):
        return _decode(instance["b64"])
    return {column: _decode(value["b64"]) if _is_encoded(value) else value for column, value in instance.items()}


def _is_encoded(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text)
    except (TypeError, ValueError) as error:
        raise MalformedRequest(f'An instance holds "b64" that is no base64: {error}.') from None
