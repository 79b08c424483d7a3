"""Streaming from a handler, and importing a class by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ts.context import send_pieces
from ts.importing import import_class

__all__ = ["import_class", "send_intermediate_predict_response"]


def send_intermediate_predict_response(
    ret: Sequence[Any] | Mapping[int, Any], req_id_map: Mapping[int, str], message: str, code: int, context: Any
) -> None:
    """Sends one piece of a streamed answer to each request, at once; what the handler returns is the last piece.

    Status and headers travel with the first piece. Does nothing in ranks other than the first, and outside a worker.

    Args:
        ret: the pieces, found by the keys of ``req_id_map``; of any type a handler may return.
        req_id_map: index to request id, for all or some requests: usually ``context.request_ids``.
        message: why the requests fail, if ``code`` says that they do.
        code: 200; a status of 400 or above ends the answers to these requests, and only these, with ``message``.
        context: the handler's context.

    Raises:
        ValueError: there is no context.
    """
    send_pieces(ret, req_id_map, message, code, context)
