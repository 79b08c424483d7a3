"""The old name of the envelope ``kservev2``."""

from __future__ import annotations

from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope

__all__ = ["KFservingv2Envelope"]

KFservingv2Envelope = KServev2Envelope
