"""The inference API, with several models loaded at start."""

from __future__ import annotations

from oracle.exchange import Scenario
from oracle.scenarios.payloads import PAYLOADS
from oracle.scenarios.results import RESULTS
from oracle.scenarios.routing import ROUTING
from oracle.scenarios.transport import TRANSPORT

__all__ = ["INFERENCE"]

INFERENCE = Scenario(
    "inference",
    "The inference API, with several models loaded at start.",
    (*TRANSPORT, *ROUTING, *PAYLOADS, *RESULTS),
    models=("looks", "looks-2", "answers", "fails", "counts", "counts-eagerly", "streams", "ends-at-once", "impatient"),
    config={"metrics_mode": "log"},
)
