"""BaseDeepSpeedHandler: one rank of a model that DeepSpeed spreads over several GPUs."""

from __future__ import annotations

import os
from typing import Any

from ts.torch_handler.base_handler import BaseHandler

__all__ = ["BaseDeepSpeedHandler"]


class BaseDeepSpeedHandler(BaseHandler):
    """Base of handlers that build their model with :func:`ts.handler_utils.distributed.deepspeed.get_ds_engine`.

    Attributes:
        device: number of the GPU of this rank.
    """

    def initialize(self, ctx: Any) -> None:  # noqa: ARG002  # the contract of handlers
        """Finds the GPU of this rank; the subclass builds the model.

        Args:
            ctx: not used here.
        """
        self.device = int(os.environ.get("LOCAL_RANK", "0"))
