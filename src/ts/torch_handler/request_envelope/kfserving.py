"""The old name of the envelope ``kserve``."""

from __future__ import annotations

from ts.torch_handler.request_envelope.kserve import KServeEnvelope

__all__ = ["KFservingEnvelope"]

KFservingEnvelope = KServeEnvelope
