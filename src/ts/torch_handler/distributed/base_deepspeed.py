"""An old import path of :class:`ts.torch_handler.distributed.base_deepspeed_handler.BaseDeepSpeedHandler`."""

from __future__ import annotations

from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler

__all__ = ["BaseDeepSpeedHandler"]
