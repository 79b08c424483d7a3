"""Envelope ``kserve``: the KServe v1 protocol, ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out."""

from __future__ import annotations

from typing import Any

from ts.torch_handler.request_envelope.base import InstancesEnvelope, instances_of, is_explain

__all__ = ["KServeEnvelope"]


class KServeEnvelope(InstancesEnvelope):
    """The handler gets the instances of all requests, usually ``{"data": ...}`` each."""

    def open(self, row: Any) -> list[Any]:
        """The instances of one request.

        Args:
            row: the parameters of the request.

        Raises:
            MalformedRequest: there is no list of instances.
        """
        return instances_of(row)

    def close(self, answers: Any, index: int) -> dict[str, Any]:
        """The response to one request.

        Args:
            answers: the answers to its instances.
            index: of the request in the batch.
        """
        return {"explanations" if is_explain(self.context, index) else "predictions": answers}
