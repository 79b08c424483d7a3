"""BasePippyHandler: one rank of a model that PiPPy cuts into stages."""

from __future__ import annotations

import os
from typing import Any

import torch

from ts.handler_utils.distributed.pt_pippy import initialize_rpc_workers
from ts.torch_handler.base_handler import BaseHandler

__all__ = ["BasePippyHandler"]


class BasePippyHandler(BaseHandler):
    """Base of handlers that build their model with :mod:`ts.handler_utils.distributed.pt_pippy`.

    Attributes:
        local_rank: number of this rank on its machine.
        world_size: how many ranks there are.
        device: number of the GPU of this rank; ``cpu`` without GPUs.
    """

    local_rank: int = 0
    world_size: int = 1

    def initialize(self, ctx: Any) -> None:
        """Connects the ranks; the subclass builds the model.

        Args:
            ctx: has the configuration.

        Raises:
            KeyError: ``LOCAL_RANK`` or ``WORLD_SIZE`` is not set (torchrun does), or a key of the section ``pippy`` is
                missing.
        """
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        count = torch.cuda.device_count()
        self.device = self.local_rank % count if count else torch.device("cpu")
        initialize_rpc_workers(self.local_rank, self.world_size, ctx)
