"""An old import path of :func:`ts.handler_utils.utils.send_intermediate_predict_response`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ts.context import send_pieces

__all__ = ["send_intermediate_predict_response"]


def send_intermediate_predict_response(
    ret: Sequence[Any] | Mapping[int, Any],
    req_id_map: Mapping[int, str],
    message: str,
    code: int,
    context: Any = None,
) -> None:
    """Sends one piece of a streamed answer to each request. Deprecated: import it from ``ts.handler_utils.utils``.

    Raises:
        ValueError: there is no context.
    """
    warnings.warn(
        "Import send_intermediate_predict_response from ts.handler_utils.utils.",
        PendingDeprecationWarning,
        stacklevel=2,
    )
    send_pieces(ret, req_id_map, message, code, context)
